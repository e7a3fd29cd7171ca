"""The adapter of a model alone, as a PEFT directory: for whoever has the backbone and wants what was learnt on it."""

from __future__ import annotations

from pathlib import Path

import torch

from scaleup.checkpoint.model_directory import ADAPTER_WEIGHTS
from scaleup.checkpoint.tensor_names import ADAPTER_PREFIX
from scaleup.common import tensors
from scaleup.errors import UserError
from scaleup.model import adapter
from scaleup.model.adapter import Adapt
from scaleup.model.build import load
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.parity import parity


def write(model: TubeViT, source: str | Path, out: Path, base: str | None) -> tuple[float, float]:
    """Write what ``peft.PeftModel.from_pretrained`` puts on the backbone; tubes, gate and heads are not in it.

    Returns:
        What :func:`parity` says of the model with the adapter that was written in the place of its own.

    Raises:
        UserError: the model has no adapter.
    """
    if model.config["adapter"] is None:
        raise UserError(
            "a PEFT directory holds an adapter, and this model has none; allowed are arms that trained with arm.adapt "
            f"{', '.join(adapter.KINDS)}"
        )
    settings = Adapt(**model.config["adapter"])
    adapter.write(out, model.arm.blocks, model.block_prefix, settings, _own(model))
    other = load(source, base)
    found = tensors.read(out / ADAPTER_WEIGHTS)[0]
    with torch.no_grad():
        for name, tensor in _own(other).items():
            tensor.copy_(found[name])
    return parity(model, other)


def _own(model: TubeViT) -> dict[str, torch.Tensor]:
    """The tensors of the adapter."""
    named = model.named_tensors().items()
    return {name: tensor for name, tensor in named if name.startswith(ADAPTER_PREFIX)}
