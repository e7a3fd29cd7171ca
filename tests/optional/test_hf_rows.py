"""Datasets of Hugging Face become shards: folders of images and videos, Parquet, columns by their kinds."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.tools import tool

from scaleup.common.errors import UserError
from scaleup.data import pack as packing
from scaleup.data.hf_rows import read_dataset
from scaleup.data.pack import pack
from scaleup.data.shards import Shards

datasets = pytest.importorskip("datasets")
sys.path.append(str(Path(__file__).parents[1] / "unit/data"))
from videos import numbered  # noqa: E402


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(shade: int, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (shade, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def write_folder(directory: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def write_parquet(
    directory: Path, media: Sequence[dict[str, Any]], labels: Sequence[Any], kind: Any = None, **more: Any
) -> Path:
    """A dataset as the hub keeps it: bytes within a file of Parquet."""
    columns = {"clip": list(media), "action": list(labels)} | {name: values for name, (values, _) in more.items()}
    kinds = {"clip": datasets.Video(decode=False), "action": kind or datasets.ClassLabel(names=["jump", "run", "swim"])}
    features = datasets.Features(kinds | {name: feature for name, (_, feature) in more.items()})
    directory.mkdir(parents=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(directory / "train-00000-of-00001.parquet")
    return directory


def samples(shards: Shards) -> set[tuple[str, str, bytes]]:
    """Class, extension and bytes of each sample."""
    read = [shards.read(number) for number in range(len(shards))]
    return {(shards.classes["label"][each.labels["label"]], each.extension, each.media) for each in read}


def test_a_folder_of_images_is_packed_as_it_is(tmp_path: Path) -> None:
    files = {f"train/{name}/{shade}.png": picture(shade) for name in ("cat", "dog") for shade in (10, 20, 30)}
    source = write_folder(tmp_path / "source", files)
    done = tool("make_shards", f"hf:{source}", "--out", tmp_path / "out")
    assert done.returncode == 0 and "6 images, label (2 classes)" in done.stdout, done.stderr
    assert samples(Shards.open(tmp_path / "out")) == {(name.split("/")[1], "png", data) for name, data in files.items()}


def test_a_folder_of_videos_is_packed_as_it_is(tmp_path: Path) -> None:
    files = {f"{name}/{count}.mp4": numbered(count) for name in ("run", "swim") for count in (4, 6)}
    shards = pack(read_dataset(f"hf:{write_folder(tmp_path / 'source', files)}"), tmp_path / "out")
    assert shards.modality == "video"
    assert samples(shards) == {(name.split("/")[0], "mp4", data) for name, data in files.items()}


def test_parquet_is_recognised_and_its_bytes_are_not_encoded_again(tmp_path: Path) -> None:
    clips = [numbered(count) for count in (4, 5, 6, 7)]
    media = [
        {"bytes": clip, "path": path} for clip, path in zip(clips, ("a.mp4", None, "c.clip", "d.mp4"), strict=True)
    ]
    source = write_parquet(tmp_path / "source", media, [1, 2, 1, None])
    done = tool("make_shards", source, "--out", tmp_path / "out")
    assert done.returncode == 0 and "3 videos, label (3 classes)" in done.stdout, done.stderr
    assert "1 files left out" in done.stdout and "has no label" in done.stdout
    shards = Shards.open(tmp_path / "out")
    assert shards.classes == {"label": ["jump", "run", "swim"]}
    assert samples(shards) == {("run", "mp4", clips[0]), ("swim", "mp4", clips[1]), ("run", "mp4", clips[2])}


def test_a_call_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    media = [{"bytes": numbered(count), "path": f"{count}.mp4"} for count in range(4, 10)]
    source = str(write_parquet(tmp_path / "source", media, [0, 1, 2, 0, 1, 2]))
    whole = pack(read_dataset(source), tmp_path / "whole", per_shard=2, processes=1)
    encode, calls = packing.encoded, []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(packing, "encoded", fail)
    with pytest.raises(KeyboardInterrupt):
        pack(read_dataset(source), tmp_path / "out", per_shard=2, processes=1)
    shards = pack(read_dataset(source), tmp_path / "out", per_shard=2, processes=1)
    assert "going on: 2 of 3 shards are finished" in capsys.readouterr().err and len(calls) == 7
    assert shards.list_sha256 == whole.list_sha256 and samples(shards) == samples(whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "trian"}, "has no split 'trian': train; nearest: 'train'; choose one with --split"),
        ({"label": "acton"}, "--label 'acton' is not a column of .*action, text and count; nearest: 'action'"),
        ({"media": "action"}, "--media 'action' is not a column of .*: clip"),
    ],
)
def test_what_is_not_there_is_a_sentence(options: dict[str, str], said: str, tmp_path: Path) -> None:
    more = {"text": (["a"], datasets.Value("string")), "count": ([3], datasets.Value("int64"))}
    source = write_parquet(tmp_path / "source", [{"bytes": numbered(4), "path": "a.mp4"}], [1], **more)
    with pytest.raises(UserError, match=said):
        read_dataset(str(source), **options)


def test_labels_that_are_text_are_named_by_their_column(tmp_path: Path) -> None:
    media = [{"bytes": numbered(count), "path": f"{count}.mp4"} for count in (4, 5)]
    source = str(write_parquet(tmp_path / "source", media, ["walk", "jump"], datasets.Value("string")))
    with pytest.raises(UserError, match="has no column of kind ClassLabel.*; name one with --label: action"):
        read_dataset(source)
    listing = read_dataset(source, label="action")
    assert listing.classes == ["jump", "walk"] and [item.label for item in listing.items] == ["walk", "jump"]


def test_lists_of_class_labels_are_several_labels(tmp_path: Path) -> None:
    media = [{"bytes": numbered(count), "path": f"{count}.mp4"} for count in (4, 5, 6)]
    kind = datasets.List(datasets.ClassLabel(names=["jump", "run", "swim"]))
    shards = pack(
        read_dataset(str(write_parquet(tmp_path / "source", media, [[2, 0], [], [1]], kind))), tmp_path / "out"
    )
    read = [shards.read(number) for number in range(3)]
    assert {each.media: each.labels["label"] for each in read} == {
        clip["bytes"]: label for clip, label in zip(media, ([0, 2], [], [1]), strict=True)
    }


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    done = tool("make_shards", f"hf:{tmp_path / 'nowhere'}", "--out", tmp_path / "out")
    assert done.returncode == 2 and "cannot be read as a dataset of Hugging Face" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
