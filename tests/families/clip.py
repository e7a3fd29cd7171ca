"""Families of open_clip: whole models of image and text on disk, as open_clip reads and writes them."""

import json
from functools import lru_cache, partial
from typing import Any
from unittest import mock

import open_clip
import timm
from families import SMALL, Stored, patch_in, scattered
from safetensors.torch import save_file
from torch import Tensor, nn

VISION = {"width": 64, "layers": 2, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


class StoredClip(Stored):
    """The towers of a registered model made small, its switches kept; the text tower is there to be passed over."""

    def _patch(self) -> int:
        vision = open_clip.get_model_config(self.family.id)["vision_cfg"]
        self.wrapped = vision.get("timm_model_name")
        self.kwargs = SMALL | self.family.changes if self.wrapped else {}  # open_clip has no words for these
        return vision.get("patch_size", 16) if not self.wrapped else patch_in(self.wrapped)

    def _write(self) -> None:
        config = open_clip.get_model_config(self.family.id)
        config["embed_dim"], config["text_cfg"] = 24, config["text_cfg"] | TEXT
        config["text_cfg"] = {key: value for key, value in config["text_cfg"].items() if "tokenizer" not in key}
        config["vision_cfg"] |= {"image_size": self.size[0]} | ({} if self.wrapped else VISION)
        if "multimodal_cfg" in config:
            config["multimodal_cfg"] |= TEXT | {"attn_pooler_heads": 2}
        self.directory.mkdir()
        (self.directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        state = scattered(self._whole(self.size)).state_dict()
        save_file(
            {name: tensor.clone() for name, tensor in state.items()}, self.directory / "open_clip_model.safetensors"
        )

    def _whole(self, size: tuple[int, int]) -> nn.Module:
        with mock.patch("timm.create_model", partial(timm.create_model, img_size=self.size, **self.kwargs)):
            return open_clip.create_model(f"local-dir:{self.directory}", force_image_size=size).eval()

    @lru_cache(maxsize=4)  # noqa: B019 - of the family at hand
    def library(self, size: tuple[int, int]) -> Any:
        tower: Any = self._whole(size).visual
        if self.wrapped:
            tower.trunk.reset_classifier(0)
            return tower.trunk
        tower.proj, tower.output_tokens = None, False
        return tower

    def positions(self, size: tuple[int, int]) -> Tensor | None:
        return super().positions(size) if self.wrapped else self.library(size).positional_embedding
