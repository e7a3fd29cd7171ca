import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from support.tools import start, tool

from scaleup.config.schema import Input
from scaleup.data.loader import eval_loader
from scaleup.data.shards import Shards

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/unit/data"))
from test_tars import write_tar  # noqa: E402
from videos import numbered  # noqa: E402


def picture(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (shade, 0, 0)).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures, and among them three files that are none."""
    for shade, path in enumerate(["cat/one.jpg", "cat/two.v2.JPEG", "dog/one.jpg", "dog/deep/three four.jpg"]):
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).write_bytes(picture(shade))
    (tmp_path / "source/cat/broken.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "source/dog/notes.txt").write_text("no picture")
    (tmp_path / "source/dog/.hidden").write_text("no picture")
    return tmp_path / "source"


def test_shapes_are_made_and_checked(tmp_path):
    out = tmp_path / "shapes"
    made = tool("make_shards", "shapes", "--out", out, "--videos", "train=6", "--images", "val=5", "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)["shards"]
    assert {name: each["samples"] for name, each in result.items()} == {"videos-train": 6, "images-val": 5}
    assert result["images-val"]["list_sha256"] == Shards.open(out / "images-val").list_sha256
    assert "shapes: 11/11" in made.stderr
    checked = tool("check_shards", out / "videos-train")
    assert (checked.returncode, checked.stdout) == (0, "all 6 samples are unchanged since they were written\n")
    tar = out / "videos-train" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-3000])
    checked = tool("check_shards", out / "videos-train", "--json")
    assert checked.returncode == 1 and "000000.tar" in json.loads(checked.stdout)["problems"][0]


def test_a_folder_of_classes_becomes_shards_and_bad_files_are_named(folder, tmp_path):
    made = tool("make_shards", folder, "--out", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    assert "4 images" in made.stdout and "3 files left out" in made.stdout
    shards = Shards.open(tmp_path / "out")
    assert shards.classes == {"label": ["cat", "dog"]}
    samples = {sample.key.partition("-")[2]: sample for sample in map(shards.read, range(4))}
    assert sorted(sample.labels["label"] for sample in map(shards.read, range(4))) == [0, 0, 1, 1]
    assert samples["two_v2"].media == picture(1) and samples["two_v2"].extension == "jpg"
    assert samples["two_v2"].labels == {"label": 0} and samples["three_four"].labels == {"label": 1}
    failed = {Path(failure.source).name: failure.reason for failure in shards.failures}
    assert failed.keys() == {"broken.jpg", "notes.txt", ".hidden"} and "not a readable image" in failed["broken.jpg"]
    assert tool("check_shards", tmp_path / "out").returncode == 0
    assert "exists" in tool("make_shards", folder, "--out", tmp_path / "out").stderr
    assert tool("make_shards", folder, "--out", tmp_path / "out", "--overwrite").returncode == 0


def only(name, content):
    def make(source):
        (source / "class").mkdir(parents=True)
        (source / "class" / name).write_bytes(content)

    return make


def mixed(source):
    only("a.png", b"")(source)
    (source / "class" / "b.mp4").write_bytes(b"")


BAD = {
    "missing": (lambda source: None, "neither a folder, nor a file, nor the word 'shapes'"),
    "empty": (lambda source: source.mkdir(), "no class folders"),
    "no media": (only("a.txt", b""), "no files"),
    "mixed": (mixed, "image and video files"),
    "none readable": (only("a.mp4", b"garbage"), "none of the 1 files can be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_source_is_one_sentence(tmp_path, case):
    make, said = BAD[case]
    make(tmp_path / "source")
    result = tool("make_shards", tmp_path / "source", "--out", tmp_path / "out")
    refused(result, said)
    assert not [path for path in tmp_path.iterdir() if path.name != "source"]


def refused(result, said):
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and said in lines[-1] and lines[-1].startswith("error: ")
    assert "Traceback" not in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    "option, value, said",
    [("--videos", "train=x", "'train=x' is not a list"), ("--images", "tarin=5", "tarin"), ("--size", "31", "even")],
)
def test_bad_options_are_one_sentence(tmp_path, option, value, said):
    refused(tool("make_shards", "shapes", "--out", tmp_path / "out", option, value), said)


OTHERS = [  # source, option, the sources that have it
    ("folder", "--label=x", "tars and hf"),
    ("folder", "--media=x", "hf"),
    ("folder", "--material=x", "scenes"),
    ("folder", "--places", "shapes"),
    ("folder", "--videos=train=2", "shapes and scenes"),
    ("folder", "--root=x", "list, kinetics, ssv2, charades, json, ucf101 and hmdb51"),
    ("folder", "--split=train", "kinetics, hmdb51 and hf"),
    ("shapes", "--labels=several", "folder, list, kinetics, ssv2, charades, json, ucf101, hmdb51, hf and tars"),
    ("shapes", "--per-shard=7", "folder, list, kinetics, ssv2, charades, json, ucf101, hmdb51 and hf"),
]


@pytest.mark.parametrize(("source", "option", "kinds"), OTHERS)
def test_an_option_of_other_sources_is_refused(folder, tmp_path, source, option, kinds):
    place = folder if source == "folder" else source
    result = tool("make_shards", place, "--out", tmp_path / "out", option)
    refused(result, f"{option.partition('=')[0]} is for {kinds}; '{place}' is read as {source}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fps=5"], "--fps is for videos; 'SOURCE' has images"),
        (["--quality=50"], "--quality is of images that are re-encoded as jpg or webp"),
        (["--quality=50", "--image-format=png"], "--quality is of images that are re-encoded as jpg or webp"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(folder, tmp_path, options, said):
    result = tool("make_shards", folder, "--out", tmp_path / "out", *options)
    refused(result, said.replace("SOURCE", str(folder)))
    assert not (tmp_path / "out").exists()


def test_images_that_are_encoded_again_have_a_quality(folder, tmp_path):
    for quality in (20, 90):
        options = "--reencode", "--quality", quality, "--out", tmp_path / str(quality)
        assert tool("make_shards", folder, *options).returncode == 0
    low, high = (Shards.open(tmp_path / str(quality)) for quality in (20, 90))
    assert low.keys == high.keys and low.read(0).media != high.read(0).media


def test_an_option_of_images_is_none_of_videos(tmp_path):
    (tmp_path / "source/class").mkdir(parents=True)
    (tmp_path / "source/class/a.mp4").write_bytes(numbered(2))
    result = tool("make_shards", tmp_path / "source", "--out", tmp_path / "out", "--image-format", "png")
    refused(result, f"--image-format is for images; '{tmp_path / 'source'}' has videos")


def test_checking_what_is_no_shard_directory(tmp_path):
    refused(tool("check_shards", tmp_path), "not a shard directory")
    (tmp_path / "index.json").write_text('{"format": "scaleup-shards-1", "shards": 3}')
    assert tool("check_shards", tmp_path).returncode == 1


def test_shards_without_samples_are_a_problem(tmp_path):
    made = tool("make_shards", "shapes", "--out", tmp_path, "--overwrite", "--videos", "val=0", "--images", "")
    assert made.returncode == 0, made.stderr
    checked = tool("check_shards", tmp_path / "videos-val")
    said = f"'{tmp_path / 'videos-val'}' has no samples, so nothing can be trained or tested on it\n"
    assert (checked.returncode, checked.stdout) == (1, said)


def test_an_interrupt_leaves_nothing(tmp_path):
    running = start("make_shards", "shapes", "--out", tmp_path / "out", "--videos", "train=100000")
    while not list(tmp_path.glob(".out-*/.videos*/*.tar")):
        assert running.alive
        time.sleep(0.02)
    os.kill(running.pids[0], signal.SIGINT)
    ended = running.wait()
    assert ended.returncode == 130 and "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_kinetics_list_is_packed_shrunk_and_trained_from(tmp_path):
    for number in range(4):
        (tmp_path / f"videos/id{number}_00000{number}_000013.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / f"videos/id{number}_00000{number}_000013.mp4").write_bytes(numbered(6, height=48, width=64))
    rows = [f"{'ab'[number % 2]} class,id{number},{number},13,train" for number in range(5)]
    (tmp_path / "k.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]))
    made = tool(
        "make_shards",
        tmp_path / "k.csv",
        "--root",
        tmp_path / "videos",
        "--out",
        tmp_path / "out",
        "--short",
        "32",
        "--json",
    )
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)["shards"]["out"]
    assert (result["samples"], result["classes"]) == (4, {"label": 2})
    assert [failure["reason"] for failure in result["failures"]] == ["No such file or directory"]
    shards = Shards.open(tmp_path / "out")
    assert shards.classes == {"label": ["a class", "b class"]}
    batch = next(eval_loader(shards, {"h": "label"}, Input(frames=2, size=[32, 32], fps=10), batch=4, workers=0))
    assert batch.pixels.shape == (4, 1, 3, 2, 32, 32) and sorted(batch.labels["h"].tolist()) == [0, 0, 1, 1]


def test_tars_are_indexed_in_place(tmp_path):
    members = [(f"{number}.jpg", picture(number)) for number in range(3)]
    members += [(f"{number}.cls", str(number).encode()) for number in range(2)]
    write_tar(tmp_path / "tars/0.tar", sorted(members))
    refused(tool("make_shards", tmp_path / "tars", "--out", tmp_path / "out"), "tars are used in place")
    made = tool("make_shards", tmp_path / "tars")
    assert made.returncode == 0, made.stderr
    assert "2 images, label (2 classes)" in made.stdout and "0.tar: 2: has no label" in made.stdout
    assert tool("check_shards", tmp_path / "tars").stdout.startswith(
        "all 2 samples are unchanged since they were written\n1 files"
    )
    tar = tmp_path / "tars/0.tar"
    tar.write_bytes(tar.read_bytes().replace(b"1.cls", b"x.cls"))
    checked = tool("check_shards", tmp_path / "tars", "--json")
    assert checked.returncode == 1 and json.loads(checked.stdout)["problems"]


def test_what_is_left_out_is_told_by_reason_and_count(folder, tmp_path):
    for name in ("._one.jpg", ".ipynb_checkpoints/one.jpg"):
        (folder / "cat" / name).parent.mkdir(exist_ok=True)
        (folder / "cat" / name).write_bytes(picture(0))
    (folder / "cat/film.mp4").write_bytes(b"one that strayed")
    (folder / "dog/gone.jpg").symlink_to("nowhere.jpg")
    (folder / "dog" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no picture")
    made = tool("make_shards", folder, "--out", folder / "out", "--processes", 1)
    assert made.returncode == 0, made.stderr
    assert "4 images" in made.stdout and "8 files left out (index.json lists all):" in made.stdout
    for line in (
        "cat/._one.jpg: is hidden (and 2 more like it)",
        "cat/film.mp4: is not a file of images by its extension (and 1 more like it)",
        "dog/gone.jpg: links to 'nowhere.jpg', which does not exist\n",
        "caf\\udce9.jpg: not a readable image",
    ):
        assert line in made.stdout
    assert len(Shards.open(folder / "out").failures) == 8
    again = tool("make_shards", folder, "--out", folder / "out", "--processes", 1, "--overwrite")
    assert "4 images, label (2 classes)" in again.stdout and "out: is a directory of shards" in again.stdout
    checked = tool("check_shards", folder / "out")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("out", ["source", ""])
def test_the_source_is_never_overwritten(folder, tmp_path, out):
    refused(tool("make_shards", folder, "--out", tmp_path / out, "--overwrite"), "would take the place of")
    assert len(list(folder.rglob("*.jpg"))) == 4


def test_a_source_that_is_misspelt_and_a_missing_out_are_one_sentence(folder, tmp_path):
    refused(tool("make_shards", tmp_path / "sorce", "--out", tmp_path / "out"), "nearest: 'source'")
    refused(tool("make_shards", folder), "no output directory is given; name one with --out")
    refused(tool("make_shards", tmp_path / "sorce", "--kind", "tars"), "sorce' is not a readable folder of tars")
    refused(tool("make_shards", folder, "--kind", "tar"), "invalid choice: 'tar' (choose from ")


def test_shards_with_other_shards_in_a_folder_are_all_checked(tmp_path):
    write_tar(tmp_path / "outer/0.tar", [("a.jpg", picture(1)), ("a.cls", b"0")])
    write_tar(tmp_path / "outer/inner/0.tar", [("b.jpg", picture(2)), ("b.cls", b"0")])
    for folder in ("outer", "outer/inner"):
        assert tool("make_shards", tmp_path / folder).returncode == 0
    assert tool("check_shards", tmp_path / "outer").stdout == "all 2 samples are unchanged since they were written\n"
    (tmp_path / "outer/0.tar").unlink()
    checked = tool("check_shards", tmp_path / "outer")
    assert (checked.returncode, checked.stdout) == (1, "0.tar: missing\n")
