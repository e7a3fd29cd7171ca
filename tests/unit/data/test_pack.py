import errno
import fcntl
import io
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support.indexes import whole_index
from support.runs import files
from support.tools import left, start, tool
from videos import numbered, numbers

from scaleup.common import files as common_files
from scaleup.common.errors import UserError
from scaleup.data import pack as packing
from scaleup.data.decode import BadSample, decode_clip, decode_image
from scaleup.data.encode import Encoding, encoded
from scaleup.data.generated import encode_mp4
from scaleup.data.members import group_members
from scaleup.data.pack import pack, write_shard
from scaleup.data.shards import Sample, Shards
from scaleup.data.sources import read_source
from scaleup.data.verify import verify

ROOT = Path(__file__).parents[3]


def picture(shade, size=(24, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten pictures, one of which is broken."""
    for number in range(20):
        path = tmp_path / "source" / f"class{number // 10}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (tmp_path / "source/class0/03.png").write_bytes(b"broken")
    return tmp_path / "source"


@pytest.mark.parametrize("processes", [1, 2])
def test_bytes_depend_on_the_input_and_the_seed_alone(folder, tmp_path, processes):
    listing = read_source(folder)
    one = pack(listing, tmp_path / "one", seed=1, per_shard=6, processes=1)
    again = pack(listing, tmp_path / "again", seed=1, per_shard=6, processes=processes)
    other = pack(listing, tmp_path / "other", seed=2, per_shard=6, processes=processes)
    assert files(one.path) == files(again.path) != files(other.path)
    assert one.keys != other.keys and one.list_sha256 == other.list_sha256
    assert len(one) == 19 and [failure.reason[:20] for failure in one.failures] == ["not a readable image"]
    assert sum(one.sizes) == 19 and max(one.sizes) == 6 and verify(one.path, processes=1).problems == []
    labels = [sample.labels["label"] for sample in map(one.read, range(19))]
    assert labels != sorted(labels)  # classes are mixed
    assert all(one.read(i).media == picture(int(key[-2:])) for i, key in enumerate(one.keys))


def cut_off(listing, out, after):
    """Pack until so many files are done, then fail as a kill would: nothing is tidied up."""
    done = 0

    def advance(count):
        nonlocal done
        done += count
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(listing, out, per_shard=4, processes=1, advance=advance)


def test_what_was_finished_is_kept(folder, tmp_path, capsys):
    listing = read_source(folder)
    whole = pack(listing, tmp_path / "whole", per_shard=4, processes=1)
    cut_off(listing, tmp_path / "out", 11)
    assert not (tmp_path / "out").exists()
    partial = tmp_path / ".out.partial"
    kept = {path.name: path.stat().st_ino for path in partial.glob("00000[01].tar")}
    assert len(kept) == 2
    counts = []
    resumed = pack(listing, tmp_path / "out", per_shard=4, processes=1, advance=counts.append)
    assert counts[0] == 8 and sum(counts) == 20
    assert files(resumed.path) == files(whole.path) and not partial.exists()
    assert {name: (resumed.path / name).stat().st_ino for name in kept} == kept  # not written anew
    assert "going on: 2 of 5 shards are finished" in capsys.readouterr().err


def test_a_full_disk_keeps_what_is_finished(folder, tmp_path, monkeypatch):
    listing, write = read_source(folder), packing.write_shard

    def full(path, samples):
        if path.name == "000002.tar":
            raise OSError(28, "No space left on device")
        return write(path, samples)

    monkeypatch.setattr(packing, "write_shard", full)
    with pytest.raises(UserError, match="out' cannot be written: No space left on device"):
        pack(listing, tmp_path / "out", per_shard=4, processes=1)
    monkeypatch.undo()
    counts = []
    assert len(pack(listing, tmp_path / "out", per_shard=4, processes=1, advance=counts.append)) == 19
    assert counts[0] == 8


def test_a_finished_shard_that_changed_is_made_again(folder, tmp_path, capsys):
    listing = read_source(folder)
    whole = pack(listing, tmp_path / "whole", per_shard=4, processes=1)
    cut_off(listing, tmp_path / "out", 11)
    tar = tmp_path / ".out.partial/000001.tar"
    tar.write_bytes(tar.read_bytes()[:-700])
    (tmp_path / ".out.partial/000000.json").write_text("{")
    assert files(pack(listing, tmp_path / "out", per_shard=4, processes=1).path) == files(whole.path)
    assert "shard 000001.tar has changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize("refused", ["chmod", "flock", "utime"])
def test_it_goes_on_where_the_file_system_knows_less(refused, folder, tmp_path, capsys, monkeypatch):
    """Of permissions, of locks, or of when exactly a file was written."""

    def refuse(*_, **__):
        raise OSError(errno.ENOTSUP, "not here")

    file = folder / "class1/11.png"
    os.utime(file, ns=(0, 7_123_456_789))
    if refused != "utime":
        monkeypatch.setattr(*{"chmod": (os, "chmod"), "flock": (fcntl, "flock")}[refused], refuse)
    listing = read_source(folder)
    cut_off(listing, tmp_path / "out", 11)
    if refused == "utime":
        os.utime(file, ns=(0, 6_000_000_000))  # as of a mount that keeps even seconds, once it is mounted again
    assert len(pack(listing, tmp_path / "out", per_shard=4, processes=1)) == 19
    assert "going on: 2 of 5 shards are finished" in capsys.readouterr().err


def test_another_plan_begins_anew(folder, tmp_path, capsys):
    cut_off(read_source(folder), tmp_path / "out", 11)
    (folder / "class1/11.png").write_bytes(picture(200, (40, 40)))
    listing = read_source(folder)
    out, whole = (pack(listing, tmp_path / name, per_shard=4, processes=1) for name in ("out", "whole"))
    assert files(out.path) == files(whole.path)
    assert "have changed: starting again" in capsys.readouterr().err


def test_a_killed_run_goes_on_and_leaves_no_process(folder, tmp_path):
    for number in range(20, 60):
        (folder / f"class1/{number}.png").write_bytes(picture(number, (1000, 1000)))
    command = ["make_shards", folder, "--out", tmp_path / "out", "--per-shard", 4]
    running = start(*command, "--processes", 2)
    while not list(tmp_path.glob(".out.partial/000001.json")):
        assert running.alive
        time.sleep(0.01)
    running.processes[0].kill()
    running.wait()
    going_on = tool(*command, "--json")
    assert going_on.returncode == 0 and "going on: " in going_on.stderr
    whole = pack(read_source(folder), tmp_path / "whole", per_shard=4)
    assert files(tmp_path / "out") == files(whole.path)
    assert not left(*running.pids)


def test_what_has_come_while_it_packed_stays_and_so_do_the_shards(folder, tmp_path, capsys):
    """Two calls that were begun at once, or a folder that somebody filled meanwhile."""
    listing, out = read_source(folder), tmp_path / "out"

    def meanwhile(_):
        out.mkdir(exist_ok=True)
        (out / "file").write_text("theirs")

    with pytest.raises(UserError, match="out' exists"):
        pack(listing, out, per_shard=4, processes=1, advance=meanwhile)
    assert [path.name for path in out.iterdir()] == ["file"]
    assert len(pack(listing, out, per_shard=4, processes=1, overwrite=True)) == 19
    assert "going on: 5 of 5 shards are finished" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(short=8)])
def test_what_is_found_to_be_of_another_kind_is_left_out(folder, tmp_path, encoding):
    """By its content, or by the name of a row: those of a list of files were compared before."""
    listing = read_source(folder)
    reading = replace(listing, read=lambda path: ("gif" if path.stem == "12" else "png", listing.read(path)[1]))
    shards = pack(reading, tmp_path / "out", encoding, processes=1)
    reasons = [failure.reason for failure in shards.failures if failure.source.endswith("12.png")]
    assert reasons == ["is a .gif; allowed are png, jpg, webp, jpeg"] and len(shards) == 18


def test_two_processes_do_not_write_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(common_files, "PATIENCE", 0)
    listing = read_source(folder)

    def meanwhile(_):
        with pytest.raises(UserError, match="another process is writing"):
            pack(listing, tmp_path / "out", processes=1)

    pack(listing, tmp_path / "out", processes=1, advance=meanwhile)
    with pytest.raises(UserError, match="exists"):
        pack(listing, tmp_path / "out", processes=1)
    assert len(pack(listing, tmp_path / "out", overwrite=True, processes=1)) == 19


def test_reasons_of_files_that_are_not_there_or_not_media(tmp_path):
    (tmp_path / "a.mp4").write_bytes(numbered(3))
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "list.txt").write_text("a.mp4 0\nmissing.mp4 0\ndir.mp4 0\nb.txt 0\nnul\0.mp4 0\na.mp4\n")
    shards = pack(read_source(tmp_path / "list.txt"), tmp_path / "out", processes=1)
    reasons = {Path(failure.source).name: failure.reason for failure in shards.failures}
    assert len(shards) == 1 and reasons == {
        "missing.mp4": "No such file or directory",
        "dir.mp4": "Is a directory",
        "b.txt": "is not a file of videos by its extension",
        "nul\0.mp4": "embedded null byte",
        "a.mp4": "line 6 has no label after the path",
    }


def test_images_are_shrunk_and_re_encoded():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    for wanted, kind in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        ending, data = encoded(buffer.getvalue(), "png", "image", Encoding(short=20, image=wanted))
        assert ending == wanted and Image.open(io.BytesIO(data)).format == kind
        assert decode_image(data).shape == (3, 20, 30)
    assert encoded(buffer.getvalue(), "png", "image", Encoding()) == ("png", buffer.getvalue())
    same = encoded(buffer.getvalue(), "png", "image", Encoding(image="png"))[1]
    assert np.array_equal(decode_image(same).permute(1, 2, 0), pixels)


def test_videos_are_re_encoded_at_another_rate_and_size():
    video = numbered(20, height=64, width=96)  # 10 frames a second
    ending, data = encoded(video, "mkv", "video", Encoding(short=31, fps=5))
    assert ending == "mp4" and encoded(video, "mkv", "video", Encoding(short=31, fps=5))[1] == data
    with av.open(io.BytesIO(data)) as file:
        frames = list(file.decode(video=0))
        assert len(frames) == 11 and (frames[0].height, frames[0].width) == (30, 46)
    assert numbers(decode_clip(data, 10, 5)) == list(range(0, 20, 2))
    again = encoded(video, "mp4", "video", Encoding(again=True))[1]
    assert numbers(decode_clip(again, 20, 10)) == list(range(20))
    assert numbers(decode_clip(encoded(video, "mp4", "video", Encoding(fps=60))[1], 20, 10)) == list(range(20))


def test_a_variable_rate_survives_re_encoding():
    video = numbered(6, stamps=[0, 1, 2, 10, 11, 12])
    again = encoded(video, "mp4", "video", Encoding(again=True))[1]
    assert numbers(decode_clip(again, 13, 10)) == numbers(decode_clip(video, 13, 10))


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(short=16)])
def test_what_cannot_be_decoded_is_not_encoded(encoding):
    for modality in ("image", "video"):
        with pytest.raises(BadSample):
            encoded(b"garbage" * 99, "mp4", modality, encoding)


def test_index_holds_what_it_should(folder, tmp_path):
    pack(read_source(folder), tmp_path / "out", per_shard=7, processes=1)
    index = json.loads((tmp_path / "out/index.json").read_bytes())
    assert index["classes"] == {"label": ["class0", "class1"]} and index["count"] == 19
    for shard, whole in zip(index["shards"], whole_index(tmp_path / "out").shards, strict=True):
        assert shard.keys() == {"file", "bytes", "sha256", "samples", "crc32"}
        tar = (tmp_path / "out" / shard["file"]).read_bytes()
        assert len(tar) == shard["bytes"] and shard["samples"] == len(whole.samples)
        for sample in whole.samples:
            offset, size, _ = sample.members["png"]
            assert tar[offset : offset + size] == picture(int(sample.key[-2:]))
    assert Shards.open(tmp_path / "out").failures[0].source.endswith("03.png")


def test_a_key_may_have_folders_with_dots(tmp_path):
    """As keys of tars that are used in place have, and the records of their cache."""
    entry = write_shard(tmp_path / "a.tar", [Sample("./v1.0/a-v0", "safetensors", b"abc", {})])
    ((key, members),) = [(sample.key, sample.members) for sample in entry.samples]
    assert (
        key == "./v1.0/a-v0"
        and members.keys() == {"safetensors", "json"} == group_members(tmp_path / "a.tar")[0][key].keys()
    )


def test_a_video_is_re_encoded_to_the_same_bytes_each_time():
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (48, 90, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    noise = rng.integers(-12, 13, (40, 64, 80, 3))
    pictures = [np.clip(ground[i : i + 64, 2 * i : 2 * i + 80] + noise[i], 0, 255) for i in range(40)]
    data = encode_mp4(np.stack(pictures).astype(np.uint8))
    assert len({encoded(data, "mp4", "video", Encoding(again=True))[1] for _ in range(20)}) == 1
