"""Saves and loads models as directories. A directory is written completely or not at all; on loading, every tensor is
checked.

A delta has the tensors that differ from the public backbone (tubes, gate, trained blocks, norm, heads), and the sha256
of the base weights that it needs. Backbone tensors have the library's names.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import Self

from scaleup.backbones.backbone import Backbone, BlockFile
from scaleup.backbones.build import build
from scaleup.checkpoint import hub
from scaleup.checkpoint.card import Described, card
from scaleup.checkpoint.hub import is_path
from scaleup.checkpoint.model_directory import (
    ADAPTER,
    ADAPTER_PREFIX,
    DELTA,
    FULL,
    ModelConfig,
    local,
    public_name,
    read_config,
    read_report,
    read_tensors,
    refuse_misfits,
)
from scaleup.common import tensors
from scaleup.common.errors import UserError
from scaleup.common.files import make_readable, new_directory, write_json
from scaleup.model import adapter
from scaleup.model.arm import Arm, alphas
from scaleup.model.trunk import Trunk

NO_BASE = "this model has no sha256 of its backbone, so it has no delta; allowed is --to full"


class Pretrained(nn.Module):
    """Saving and loading of a model. ``base`` has the sha256 of each tensor of its public backbone, if it has one."""

    config: ModelConfig
    depth: int
    frozen_depth: int
    block_prefix: str
    base: dict[str, str]
    report: dict[str, Any]
    trunk: Trunk | None
    arm: Arm

    @classmethod
    def assemble(cls, config: ModelConfig, backbone: Backbone, seed: int = 0) -> Self:
        """A model of ``config`` on a backbone; tubes, heads and adapters are new."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, source: str | Path, base: str | None = None, placement: str = "device") -> Self:
        """Load a model directory or a hub id; the model is in eval mode.

        Args:
            base: where the base weights of a delta are now, if they have moved.
            placement: ``"disk"`` leaves the frozen blocks in the file of a full directory or of a delta's base; they
                are read one at a time.

        Raises:
            UserError: a file is missing or damaged, the base has another sha256, or a tensor is missing, unexpected or
                of another shape.
        """
        directory = local(source)
        config = read_config(directory)
        is_full = (directory / FULL).exists()
        on_disk = config.frozen_depth if placement == "disk" else 0
        if is_full:
            model = cls.from_config(config, "meta")
        else:
            model = cls.from_config(config, base or config.backbone.weights, on_disk)
        waiting = model._wait_in(directory / FULL) if is_full and on_disk else set()
        content = read_tensors(directory, waiting)
        refuse_misfits(model.named_tensors(), content, set(model.base), directory)
        model._assign({name: tensor for name, tensor in content.items() if name not in waiting})
        model.report = read_report(directory)
        return model.eval()

    @classmethod
    def from_config(cls, config: ModelConfig, weights: str | None, on_disk: int = 0) -> Self:
        """A model whose backbone has the weights that ``weights`` names (see :func:`scaleup.backbones.build.build`)."""
        backbone = _backbone(config, weights, on_disk)
        base = {} if weights == "meta" else _base(config, backbone)  # before its blocks get adapters
        with torch.device("meta"):  # all other tensors come from the file
            model = cls.assemble(config, backbone)
        model.base = base
        return model

    def save_pretrained(self, directory: str | Path, kind: str | None = None, overwrite: bool = False) -> Path:
        """Write a model directory, completely or not at all.

        Args:
            kind: ``"delta"`` or ``"full"``; by default a delta if blocks are frozen and the base is known.
        """
        kind = kind or ("delta" if self.frozen_depth and self.base else "full")
        content = self.stored_tensors()
        if kind == "full" and (lost := self.base.keys() - content.keys()):
            raise UserError(
                f"{len(lost)} tensors of the frozen blocks are not in memory in float32, so {directory} cannot be "
                "written in full; write a delta, and export it with --to full"
            )
        adapted = {name: content.pop(name) for name in list(content) if name.startswith(ADAPTER_PREFIX)}
        if kind == "delta":
            content = self._beyond_base(content)
        with new_directory(directory, overwrite) as new:
            text = json.dumps(self.config.to_json(), indent=2)
            (new / "config.json").write_text(text + "\n")
            write_json(new / "report.json", self.report)
            size = sum(tensor.numel() for tensor in (content | adapted).values())
            (new / "README.md").write_text(self.card(kind, size))
            weights = new / (FULL if kind == "full" else DELTA)
            try:
                if adapted:
                    assert self.config.adapter is not None
                    adapter.write(new / ADAPTER, self.arm.blocks, self.block_prefix, self.config.adapter, adapted)
                save_file(content, weights, {"config": text})  # one key, because the order of two would be random
            except SafetensorError as error:
                raise UserError(f"{directory} could not be written ({error}); nothing was left behind") from error
            make_readable(weights)  # safetensors writes files that only the owner may read
        return Path(directory)

    def push_to_hub(self, repo_id: str, private: bool = False, message: str = "scaleup", **options: Any) -> str:
        """Upload to the Hugging Face hub as ``owner/name``; return the address of the commit.

        Args:
            options: options of :meth:`save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as temporary:
            directory = self.save_pretrained(Path(temporary) / "model", **options)
            return hub.upload(directory, repo_id, private, message)

    def card(self, kind: str, size: int) -> str:
        """The model card of a directory of ``size`` numbers, ``"delta"`` or ``"full"``."""
        values = {name: value.item() for name, value in alphas(self.arm.gate).items()}
        return card(Described(self.config, self.report, self.depth, values, kind, size))

    def named_tensors(self) -> dict[str, Tensor]:
        """All tensors of the model under their names on disk."""
        return {public_name(name, self.block_prefix): tensor for name, tensor in self.state_dict().items()}

    def stored_tensors(self) -> dict[str, Tensor]:
        """All tensors under their names on disk, except those of frozen blocks that are only in the public backbone."""
        stored = {name: self._stored(name, tensor) for name, tensor in self.state_dict().items()}
        return {
            public_name(name, self.block_prefix): tensor.detach().cpu().contiguous()
            for name, tensor in stored.items()
            if tensor is not None
        }

    def _stored(self, name: str, tensor: Tensor) -> Tensor | None:
        """The float32 content of a tensor of the model; None if only the public backbone has it."""
        trunk = self.trunk
        if trunk is None or not name.startswith("trunk.blocks."):
            return tensor
        if trunk.precision == "float32" and not tensor.is_meta:
            return tensor
        original = trunk.originals.get(name.removeprefix("trunk."))
        if original is not None or self.base:
            return original
        assert trunk.file is not None  # blocks stay in a full directory
        index, own_name = name.removeprefix("trunk.blocks.").split(".", 1)
        return trunk.file.read(int(index), own_name)

    def public_blocks(self) -> set[str]:
        """Tensors of the frozen blocks (``blocks.3.attn.qkv.weight``) that are the public backbone's."""
        assert self.trunk is not None
        own = {f"blocks.{name}": t for name, t in self.trunk.blocks.state_dict().items() if not t.is_meta}
        digests = tensors.hashes(own) if self.base else {}
        prefix = self.block_prefix
        return {name for name, digest in digests.items() if digest == self.base.get(public_name(name, prefix))}

    def _assign(self, content: Mapping[str, Tensor]) -> None:
        """Assign tensors without a copy; frozen parameters stay frozen, others trainable."""
        names = {name: public_name(name, self.block_prefix) for name in self.state_dict()}
        state = {name: content[public] for name, public in names.items() if public in content}
        self.load_state_dict(state, strict=False, assign=True)
        if self.trunk is not None:
            self.trunk.requires_grad_(False)

    def _beyond_base(self, content: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that differ from the public backbone."""
        if not self.base:
            raise UserError(NO_BASE)
        digests = tensors.hashes({name: content[name] for name in self.base if name in content})
        return {name: tensor for name, tensor in content.items() if digests.get(name) != self.base.get(name, "")}

    def _wait_in(self, path: Path) -> set[str]:
        """Leave the frozen blocks in a full file, and read them when they are needed. Returns their names in the
        file."""
        assert self.trunk is not None
        blocks = self.trunk.blocks.state_dict()
        names = {name: public_name(f"trunk.blocks.{name}", self.block_prefix) for name in blocks}
        self.trunk.file = BlockFile(str(path), names)
        return set(names.values())


def base_of(config: ModelConfig, base: str | None = None) -> dict[str, str]:
    """sha256 of each tensor of the public backbone that a model was made from."""
    if config.backbone.sha256 is None:
        raise UserError(NO_BASE)
    return _base(config, _backbone(config, base or config.backbone.weights))


def _backbone(config: ModelConfig, weights: str | None, on_disk: int = 0) -> Backbone:
    entry = config.backbone
    if weights is not None and is_path(weights) and not tensors.split(weights)[0].is_file():
        raise UserError(f"the base weights of {entry.name} are not at {weights}; give their place as base")
    height, width = config.input.size
    return build(entry.name, entry.kwargs, (height, width), weights, entry.seed, on_disk)


def _base(config: ModelConfig, backbone: Backbone) -> dict[str, str]:
    digests, entry = backbone.hashes(), config.backbone
    sha256 = tensors.fingerprint(digests)
    if entry.sha256 not in (None, sha256):
        raise UserError(
            f"the base weights of {entry.name} have sha256 {sha256[:16]}..., but the model was made from "
            f"{entry.sha256[:16]}...; give the same weights that it was made from"
        )
    return digests
