"""An exported directory in the pipeline of transformers gives what tools/predict.py gives."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from support import tools
from support.tools import script

import scaleup
from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.data.shapes import CLASSES
from scaleup.model.build import fresh
from scaleup.outputs.conversion import export

sys.path.append(str(Path(__file__).parents[1] / "unit/data"))
from videos import moving  # noqa: E402

tool = partial(tools.tool, "export")
PIPELINE = """
import json, os, sys

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": sys.argv[1], "HF_MODULES_CACHE": sys.argv[1]}
import torch
from transformers import pipeline

classify = pipeline("video-classification", model=sys.argv[2], trust_remote_code=True)
files = sys.argv[3:]
print(json.dumps([classify(file, top_k=10) for file in files]))
assert classify(files, top_k=1) == [classify(file, top_k=1) for file in files]
pixels = classify.video_processor(files[0])["pixel_values"]
with torch.inference_mode():
    print(json.dumps(classify.model(pixels[:, 0]).logits.tolist()))
"""


@pytest.fixture(scope="module")
def exported(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two heads, and its export for transformers in ``out``."""
    place = tmp_path_factory.mktemp("pipeline")
    fresh(recipe.load(tiny_path).model, {}, 0).with_arm(1, True, CLASSES["video"]).save_pretrained(place / "model")
    done = tool(place / "model", "--to", "transformers", "--head", "motion", "--out", place / "out", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["image_max_abs_diff"] == result["video_max_abs_diff"] == 0
    return place


def test_the_pipeline_gives_the_scores_of_predict(exported: Path, tmp_path: Path) -> None:
    """Of a video of one clip, of several that end within one, with frames faster than the model's, and of B-frames."""
    forms = {"short.mp4": {"frames": 5}, "long.mp4": {"frames": 43, "fps": 17}, "vp9.webm": {"codec": "libvpx-vp9"}}
    for name, form in forms.items():
        (tmp_path / name).write_bytes(moving(container=name.split(".")[1], **form))  # type: ignore[arg-type]
    files = [str(tmp_path / name) for name in forms]
    done = script(PIPELINE, tmp_path / "home", exported / "out", *files)
    assert done.returncode == 0, done.stderr
    scores, logits = map(json.loads, done.stdout.splitlines())
    assert "not supported" not in done.stderr
    model = scaleup.load(exported / "model")
    ours = scaleup.predict(model, files, head="motion", top=10, hop=None).files
    assert [len(file.clips) for file in ours] == [1, 3, 4]
    for pipe, own in zip(scores, ours, strict=True):
        assert [each["label"] for each in pipe] == [each.class_ for each in own.top]
        assert [each["score"] for each in pipe] == pytest.approx([each.probability for each in own.top], abs=1e-6)
    assert torch.tensor(logits).softmax(-1).max().item() == pytest.approx(ours[0].top[0].probability, abs=1e-6)


def test_the_directory_within_is_a_full_model(exported: Path) -> None:
    inside, model = scaleup.load(exported / "out" / "scaleup"), scaleup.load(exported / "model")
    assert inside.config == model.config
    assert all(tensor.equal(inside.named_tensors()[name]) for name, tensor in model.named_tensors().items())


def test_mistakes_are_sentences(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no head was named; this model has 'shape', 'motion'"):
        export(exported / "model", "transformers", tmp_path / "out")
    with pytest.raises(UserError, match="there is no head 'moton'.*nearest: 'motion'"):
        export(exported / "model", "transformers", tmp_path / "out", head="moton")
    with pytest.raises(UserError, match="--head is for transformers; full has all heads or none"):
        export(exported / "model", "full", tmp_path / "out", head="motion")
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "scaleup.outputs.hf_model")
    monkeypatch.delattr("scaleup.outputs.hf_model", raising=False)
    with pytest.raises(UserError, match=r"needs the package 'transformers.*': pip install 'scaleup\[transformers\]'"):
        export(exported / "model", "transformers", tmp_path / "out", head="motion")
    assert not (tmp_path / "out").exists()
