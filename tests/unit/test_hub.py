"""Models to and from the hub; the hub itself is a directory here."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

import scaleup
from scaleup.common.errors import UserError
from scaleup.config.schema import Backbone, Input, Model, Tube
from scaleup.model.build import fresh
from scaleup.model.tubevit import TubeViT


@pytest.fixture
def model() -> TubeViT:
    kwargs = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    tubes = {"long": Tube([4, 4, 4], [4, 16, 16])}
    return fresh(Model(None, Backbone("vit_ti", kwargs), Input(8, [32, 32], 8), tubes=tubes), {"motion": ["a", "b"]}, 0)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What was asked of the hub, whose repositories are in ``tmp_path``."""
    asked: dict[str, Any] = {}

    def upload(self: HfApi, repo_id: str, folder_path: Path, commit_message: str) -> str:
        shutil.copytree(folder_path, tmp_path / repo_id)
        return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: asked.update({name: options}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    yield asked


def test_what_is_pushed_is_a_model_directory(model: TubeViT, hub: dict[str, Any], tmp_path: Path) -> None:
    assert model.push_to_hub("me/tubes", private=True) == "https://hub/me/tubes/commit/1"
    assert hub == {"me/tubes": {"private": True, "exist_ok": True}}
    again = TubeViT.from_pretrained(tmp_path / "me" / "tubes")
    x = torch.randn(1, 3, 8, 32, 32)
    assert not again.training and torch.equal(again(x), model.eval()(x))
    assert torch.equal(scaleup.load(tmp_path / "me" / "tubes")(x), again(x))
    assert "pipeline_tag: video-classification" in (tmp_path / "me" / "tubes" / "README.md").read_text()


def test_a_hub_that_refuses_is_a_sentence(
    model: TubeViT, hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HFValidationError("Repo id must be in the form 'repo_name' or 'namespace/repo_name'\nand so on")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match="'a/b/c' was not uploaded: Repo id must be in the form .*name'$"):
        model.push_to_hub("a/b/c")
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'me/tubes' was not uploaded: .*[Oo]ffline"):
        model.push_to_hub("me/tubes")
