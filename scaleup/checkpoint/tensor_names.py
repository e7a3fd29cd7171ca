"""Names of a model's tensors on disk, and whether the tensors of a file fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from scaleup.errors import UserError, nearest

ADAPTER_PREFIX = "base_model.model."  # before the library's own names in a PEFT directory
ADAPTER_NAME = ".default"  # how peft calls an adapter without a name of its own


def public_name(name: str, block_prefix: str) -> str:
    """A tensor's name on disk: the library's own where it has one, ``blocks.26.x`` for ``arm.blocks.26.x``.

    Args:
        block_prefix: what the library puts before a block's number.
    """
    for prefix in ("trunk.", "arm.", "tokenizer.", "stem.", "tail."):
        name = name.removeprefix(prefix)
    if not name.startswith("blocks."):
        return name
    name = block_prefix + name.removeprefix("blocks.")
    if not is_of_adapter(name):
        return name.replace(".base_layer.", ".")
    layer, _, rest = name.partition(ADAPTER_NAME)
    return ADAPTER_PREFIX + layer + ("" if layer.endswith("lora_magnitude_vector") else rest)


def is_of_adapter(name: str) -> bool:
    """Whether a tensor of an adapted block is the adapter's."""
    return ADAPTER_NAME in name


def refuse_misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor], optional: set[str], path: Path) -> None:
    """UserError where ``found``, which ``path`` holds, is not all of ``own`` in its shapes and kinds of numbers."""
    faults = [f"unexpected {name}{nearest(name, own, 1)}" for name in sorted(found.keys() - own.keys())]
    faults += [f"missing {name}" for name in sorted(own.keys() - found.keys() - optional)]
    faults += [
        f"{name} is {_kind(found[name])} where {_kind(own[name])} belongs"
        for name in sorted(own.keys() & found.keys())
        if _kind(own[name]) != _kind(found[name])
    ]
    if faults:
        raise UserError(f"{path} does not fit its config.json: {'; '.join(faults[:6])} ({len(faults)} faults in all)")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
