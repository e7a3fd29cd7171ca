"""tools/predict.py on what people have lying about."""

import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support import tools

import scaleup
from scaleup.common.errors import UserError
from scaleup.common.files import json_value
from scaleup.config.schema import Recipe
from scaleup.data.augment import eval_views
from scaleup.data.media import expanded
from scaleup.data.pictures import Pictures, whole_view
from scaleup.data.shapes import CLASSES, make_sample
from scaleup.data.stream import frames
from scaleup.evaluation import predictor
from scaleup.model.build import fresh

predicted = partial(tools.tool, "predict")


@pytest.fixture
def model(tiny: Callable[..., Recipe], tmp_path: Path) -> Path:
    return fresh(tiny("model.input.fps=15").model, {"motion": CLASSES["video"]["motion"]}, 0).save_pretrained(
        tmp_path / "model"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A video as long as a clip, one of three clips, an image, notes, and a file that is no video."""
    (tmp_path / "media" / "below").mkdir(parents=True)
    for name, length in (("short.mp4", 8), ("below/long.mp4", 20)):
        (tmp_path / "media" / name).write_bytes(make_sample("video", 0, "train", 1, 32, length).media)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "media/a.png")
    (tmp_path / "media" / "notes.txt").write_text("nothing to see")
    (tmp_path / "media" / "broken.mp4").write_bytes(b"no video")
    return tmp_path / "media"


def test_files_of_all_kinds_in_one_call(model: Path, folder: Path) -> None:
    done = predicted(model, folder, folder / "sh*.mp4", "--top", 2, "--json")
    assert done.returncode == 1, done.stderr  # one cannot be read, the others go on
    result = json.loads(done.stdout)
    assert [Path(each["source"]).name for each in result["files"]] == ["a.png", "long.mp4", "short.mp4", "short.mp4"]
    ((failure,),) = (result["failures"],)
    assert failure["source"] == str(folder / "broken.mp4") and "not a readable video" in failure["reason"]
    assert f"{folder}/broken.mp4: not a readable video" in done.stderr and "notes.txt" not in done.stdout + done.stderr
    image, long, short, again = result["files"]
    loaded, names = scaleup.load(model), CLASSES["video"]["motion"]
    for answer, kind, file in ((image, "image", "a.png"), (short, "video", "short.mp4")):
        views = eval_views((folder / file).read_bytes(), kind, _input(loaded), 1, 1)
        expected = loaded(loaded.preprocess(views)).softmax(-1)[0]
        found = {each["class"]: each["probability"] for each in answer["top"]}
        best = expected.topk(2)
        assert list(found) == [names[index] for index in best.indices]
        assert list(found.values()) == pytest.approx(best.values.tolist(), abs=1e-5)
    assert again == short and len(long["clips"]) == 3 and len(short["clips"]) == 1


def test_predictions_are_written_as_they_come(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, out = scaleup.load(model), tmp_path / "lines.jsonl"
    whole = scaleup.predict(loaded, [str(folder)])
    result = scaleup.predict(loaded, [str(folder)], out=str(out))
    assert (result.files, result.failures, result.exit) == ([], whole.failures, 1)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == [json.loads(json.dumps(json_value(each))) for each in whole.files] and len(lines) == 3
    real, kept = predictor._predict, out.read_text()

    def fails(*args: Any) -> Any:
        if Path(args[1]).name == "short.mp4":
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(predictor, "_predict", fails)
    with pytest.raises(KeyboardInterrupt):
        scaleup.predict(loaded, [str(folder)], out=str(out), overwrite=True)
    assert out.read_text() == kept and not [*tmp_path.glob(".*partial")]
    refused = predicted(model, folder, "--out", out)
    assert refused.returncode == 2 and "lines.jsonl' exists" in refused.stderr


def test_what_is_hidden_is_passed_over_and_colons_are_no_protocols(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.mp4").rename(folder / "._short.mp4")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "short.mp4").rename(folder / "12:30.mp4")
    monkeypatch.chdir(folder)
    done = predicted(model, ".", "12:30.mp4", "--top", 1, "--json")
    result = json.loads(done.stdout)
    assert [each["source"] for each in result["files"]] == ["./12:30.mp4", "a.png", "below/long.mp4", "./12:30.mp4"]
    assert [each["source"] for each in result["failures"]] == ["gone.mp4"]
    assert "left out: ._short.mp4: is hidden" in done.stderr


def _input(model: torch.nn.Module) -> object:
    return model.config.input


def test_a_stream_on_stdin_is_told_clip_by_clip(model: Path, folder: Path, tmp_path: Path) -> None:
    media = (folder / "below" / "long.mp4").read_bytes()
    done = predicted(model, "-", "--json", "--hop", 0.4, "--top", 9, stdin=_as_pipe(media))
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)["files"]
    assert [each["second"] for each in answer["clips"]] == pytest.approx([0, 0.4, 0.8])
    assert done.stderr.count(" s  ") == 3
    clips = [{each["class"]: each["probability"] for each in clip["top"]} for clip in answer["clips"]]
    for each in answer["top"]:
        assert each["probability"] == pytest.approx(np.mean([clip[each["class"]] for clip in clips]), abs=1e-6)


def _as_pipe(media: bytes) -> bytes:
    """The same video in a container that is read from front to back."""
    out = io.BytesIO()
    with av.open(io.BytesIO(media)) as source, av.open(out, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return out.getvalue()


def test_an_overlay_is_written(model: Path, folder: Path, tmp_path: Path) -> None:
    done = predicted(model, folder / "below" / "long.mp4", "--overlay", tmp_path / "seen.mp4")
    assert done.returncode == 0 and f"overlay -> {tmp_path / 'seen.mp4'}" in done.stdout, done.stderr
    assert len(list(frames(str(tmp_path / "seen.mp4")))) == 20


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere.mp4"], "there is no file 'nowhere.mp4'; allowed are files, folders"),
        (["a.png", "--top", "0"], "argument --top: '0' is not a whole number of at least 1"),
        (["a.png", "--hop", "inf"], "argument --hop: 'inf' is not a number of at least 0.001"),
        (["a.png", "--head", "motoin"], "there is no head 'motoin'; this model has 'motion'; nearest: 'motion'"),
        (["a.png", "short.mp4", "--overlay", "x.mp4"], "--overlay takes one image or video, but there are 2 sources"),
        (["a.png", "--overlay", "x.gif"], "an overlay must be .mp4 or .png, not 'x.gif'"),
        (["a.png", "--overlay", "none/x.mp4"], "'none/x.mp4' cannot be written: there is no directory 'none'"),
    ],
)
def test_mistakes_are_a_sentence(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    done = predicted(model, *args)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not Path("x.mp4").exists()


def test_a_pattern_without_media_is_a_mistake(folder: Path) -> None:
    with pytest.raises(UserError, match="has no image and no video; allowed are files ending in png"):
        expanded([str(folder / "*.txt")])


@pytest.fixture
def served(folder: Path) -> Iterator[str]:
    """The address of the folder, on a server of this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_are_read_as_files_are(model: Path, folder: Path, served: str) -> None:
    good = [f"{served}/short.mp4", f"{served}/a.png", f"{served}/a.png?key=1.mp4"]
    bad = {
        f"{served}/none.mp4": "404 Not Found",
        f"{served}/none.png": "there is no such file",
        f"{served}/broken.mp4": "not a readable video",
        "http://127.0.0.1:9/a.png": "cannot be read: .*[Cc]onnect",
        "http://127.0.0.1:9/a.mp4": "Connection refused",
        "foo://somewhere/a.png": "cannot be read: Protocol not known: foo",
        "foo://somewhere/a.mp4": "Protocol not found",
    }
    done = predicted(model, *bad, *good, folder / "short.mp4", folder / "a.png", "--json")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    result = json.loads(done.stdout)
    video, image, asked, *local = (each["top"] for each in result["files"])
    assert [video, image] == local and asked == image
    assert [each["modality"] for each in result["files"]] == ["video", "image", "image", "video", "image"]
    reasons = {each["source"]: each["reason"] for each in result["failures"]}
    assert reasons.keys() == bad.keys()
    for address, reason in bad.items():
        assert re.search(reason, reasons[address]) and "\n" not in reasons[address], reasons[address]


def test_a_video_without_pictures_and_one_shorter_than_a_clip(model: Path, tmp_path: Path) -> None:
    short = make_sample("video", 0, "train", 1, 32, 3).media
    (tmp_path / "short.mp4").write_bytes(short)
    (tmp_path / "sound.mp4").write_bytes(_sound())
    done = predicted(model, tmp_path / "sound.mp4", tmp_path / "short.mp4", "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert [each["reason"] for each in result["failures"]] == ["no video stream"]
    loaded = scaleup.load(model)
    convert = Pictures(whole_view())
    shown = [torch.from_numpy(convert(frame)) for _, frame in frames(str(tmp_path / "short.mp4"), convert.opened)]
    found = {each["class"]: each["probability"] for each in result["files"][0]["top"]}

    def distance(repeated: int) -> float:
        clip = torch.stack([*shown, *[shown[repeated]] * 5], dim=1)  # 3 of 8
        expected = loaded(loaded.preprocess(clip[None])).softmax(-1)[0].tolist()
        named = dict(zip(loaded.config.heads["motion"], expected, strict=True))
        return max(abs(named[name] - value) for name, value in found.items())

    assert distance(-1) < 1e-5 < 1e-3 < distance(0)


def _sound() -> bytes:
    """A file that holds a tone and no picture."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as target:
        stream = target.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            target.mux(packet)
    return out.getvalue()
