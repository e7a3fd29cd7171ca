"""Hundreds of damaged files: each is named, or harmless; none hangs, none passes in silence."""

import io
import json
import signal
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from support.marks import at_length
from test_tars import downloaded, write_tar
from videos import moving

from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.data.decode import BadSample, check, decode_clip, decode_image
from scaleup.data.loader import train_loader
from scaleup.data.pack import write_shards
from scaleup.data.pictures import whole_view
from scaleup.data.shards import Sample, Shards
from scaleup.data.tars import index_tars
from scaleup.data.verify import verify


@pytest.fixture(params=[40, *at_length(200)])
def times(request):
    """How many damaged files of each kind."""
    return request.param


@pytest.fixture(autouse=True)
def no_hanging():
    def late(*_):
        raise TimeoutError("this has been going on for two minutes")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def cuts(data, times):
    """``data``, cut at evenly spread places."""
    return [data[: len(data) * i // times] for i in range(times)]


def flips(data, times):
    """``data`` with one bit turned."""
    rng = np.random.default_rng(0)
    flipped = []
    for place, bit in zip(rng.integers(len(data), size=times), rng.integers(8, size=times), strict=True):
        hurt = bytearray(data)
        hurt[place] ^= 1 << bit
        flipped.append(bytes(hurt))
    return flipped


def garbage(data, times):
    """``data`` with a stretch of random bytes."""
    rng = np.random.default_rng(1)
    spoiled = []
    for _ in range(times):
        begin, length = rng.integers(len(data)), rng.integers(4, 400)
        spoiled.append(data[:begin] + rng.bytes(min(length, len(data) - begin)) + data[begin + length :])
    return spoiled


HURT = {"cut": cuts, "flipped": flips, "garbage": garbage}


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    """Four samples as img2dataset writes them."""
    members = [member for number in range(4) for member in downloaded(number)]
    return write_tar(tmp_path_factory.mktemp("tar") / "0.tar", members).read_bytes()


@pytest.mark.parametrize("way", HURT)
def test_tars_in_place(tar, tmp_path, way, times):
    """What is used is whole, and whatever is not is spoken of."""
    for hurt in HURT[way](tar, times):
        (tmp_path / "0.tar").write_bytes(hurt)
        try:
            shards = index_tars(tmp_path, overwrite=True, processes=1)
        except UserError as error:
            assert "no sample in" in str(error) or "no images or videos" in str(error)
            continue
        assert len(shards) == 4 or shards.failures
        if way == "cut":  # here nothing is changed that could be decoded all the same
            samples = [shards.read(i) for i in range(len(shards))]
            assert all((f"{s.key}.jpg", s.media) == downloaded(int(s.key))[0] for s in samples)
            said = " ".join(failure.reason for failure in shards.failures)
            assert "cut off" in said or "unexpected end of data" in said or not hurt[-1024:].strip(b"\0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A shard directory of six images."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(6):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(buffer, "png")
        samples.append(Sample(f"sample{number}", "png", buffer.getvalue(), {"label": number % 2}))
    out = tmp_path_factory.mktemp("made") / "out"
    return write_shards(samples, out, "image", {"label": ["no", "yes"]}), samples


@pytest.mark.parametrize("way", HURT)
def test_tars_of_shards(made, way, times):
    """A shard of another size is not opened; changed bytes are never handed out; verify finds everything."""
    shards, samples = made
    path, was = shards.path / "000000.tar", (shards.path / "000000.tar").read_bytes()
    found = 0
    try:
        for number, hurt in enumerate(HURT[way](was, times)):
            path.write_bytes(hurt)
            if number % 20 == 0:
                assert verify(shards.path, processes=1).problems
            if way == "cut":
                with pytest.raises(UserError, match=rf"000000.tar' has {len(hurt)} bytes; its index says {len(was)}"):
                    Shards.open(shards.path)
                continue
            opened = Shards.open(shards.path)
            for i, sample in enumerate(samples):
                try:
                    assert opened.read(i) == sample
                except BadSample as error:
                    assert "have changed since it was written" in str(error)
                    found += 1
    finally:
        path.write_bytes(was)
    assert way == "cut" or found > 5 * times / 200


@pytest.mark.parametrize("way", HURT)
def test_indexes(made, way, times):
    shards, _ = made
    path, was = shards.path / "index.json", (shards.path / "index.json").read_bytes()
    try:
        for hurt in HURT[way](was, times):
            path.write_bytes(hurt)
            with pytest.raises(UserError, match=r"index.json|is not a shard directory"):
                Shards.open(shards.path)
    finally:
        path.write_bytes(was)
    assert Shards.open(shards.path).keys == shards.keys


@pytest.fixture(scope="module")
def video():
    return moving(24, options={"g": "8", "bf": "2"})


@pytest.mark.parametrize("way", HURT)
def test_videos(video, way, times):
    """They decode to a clip of the right form, or say why not; and so does the check of all of it."""
    bad = 0
    for hurt in HURT[way](video, times):
        try:
            check(hurt, "video")
            clip = decode_clip(hurt, 6, 10, 0.5, whole_view(16))
            assert clip.dtype == torch.uint8 and clip.shape[:2] == (3, 6)
        except BadSample as error:
            bad += 1
            assert str(error) and "\n" not in str(error)
    # The rest are other pictures; see the shards' checksums.
    assert bad / times >= {"cut": 0.95, "garbage": 0.6, "flipped": 0.25}[way]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("way", HURT)
def test_images(way, kind, times):
    buffer, bad = io.BytesIO(), 0
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(buffer, kind)
    for hurt in HURT[way](buffer.getvalue(), times):
        try:
            assert decode_image(hurt, 16).dtype == torch.uint8
        except BadSample as error:
            bad += 1
            assert str(error) and "\n" not in str(error)
    least = 0.75 if way == "cut" else 0.015 if times >= 200 else 0  # of a few dozen there may be none
    assert bad / times >= least


def png(width, height):
    """A picture that says to be so large, and is a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "size, said", [((60_000, 60_000), "decompression bomb"), ((9_000, 9_000), "9000 x 9000 pixels")]
)
def test_image_bombs(size, said):
    with pytest.raises(BadSample, match=said):
        decode_image(png(*size))


def test_a_shard_that_goes_away_in_training_is_named_and_counted(tmp_path, capsys):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "png")
    samples = [Sample(f"s{number}", "png", buffer.getvalue(), {"label": 0}) for number in range(20)]
    shards = write_shards(samples, tmp_path / "out", "image", {"label": ["a"]}, per_shard=2)

    def steps(max_bad):
        images = schema.Dataset(str(shards.path), {"h": "label"})
        return train_loader(
            schema.Data({"images": images}, batch=4, workers=0, max_bad=max_bad), schema.Input(size=[16, 16]), 0, 40
        )

    patient, strict = steps(0.1), steps(0.05)
    (shards.path / "000003.tar").unlink()
    assert sum(len(batch.keys) for batch in patient) == 160
    assert capsys.readouterr().err.count("000003.tar cannot be read: No such file") == 2
    with pytest.raises(
        UserError, match=r"^2 of the 20 samples .* more than data.max_bad 0.05 allows: 's[67]' \(.*'s[67]'"
    ):
        list(strict)


def test_a_pickle_is_never_loaded(tmp_path):
    """A member that would write a file when it is unpickled."""
    trap = tmp_path / "trapped"
    pickled = b"cposix\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    about = json.dumps({"label": "a"}).encode()
    for ending in ("pyd", "pkl", "jpg", "json", "cls"):
        members = {"jpg": downloaded(0)[0][1], "json": about} | {ending: pickled}
        write_tar(tmp_path / "0.tar", [(f"a.{end}", data) for end, data in members.items()] + downloaded(1))
        shards = index_tars(tmp_path, overwrite=True, processes=1)
        list(map(shards.read, range(len(shards))))
        assert shards.keys[-1] == "000000001" and not trap.exists()
        assert shards.failures or ending == "cls"  # as the text of a label it is just text
