"""A model's tensors under their names on disk: which are stored, whether those of a file fit, and how they get back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from scaleup.common import tensors
from scaleup.errors import UserError, nearest
from scaleup.model import adapter
from scaleup.model.tubevit import TubeViT


def public_name(name: str, model: TubeViT) -> str:
    """A tensor's name on disk: the library's own where it has one, ``blocks.26.x`` for ``arm.blocks.26.x``."""
    for prefix in ("trunk.", "arm.", "tokenizer.", "stem.", "tail."):
        name = name.removeprefix(prefix)
    if not name.startswith("blocks."):
        return name
    return adapter.public_name(model.block_prefix + name.removeprefix("blocks."))


def named_tensors(model: TubeViT) -> dict[str, Tensor]:
    """All tensors of a model under their names on disk."""
    return {public_name(name, model): tensor for name, tensor in model.state_dict().items()}


def public_blocks(model: TubeViT) -> set[str]:
    """Tensors of the frozen blocks (``blocks.3.attn.qkv.weight``) that are the public backbone's."""
    assert model.trunk is not None
    held = {f"blocks.{name}": t for name, t in model.trunk.blocks.state_dict().items() if not t.is_meta}
    digests = tensors.hashes(held) if model.base else {}
    return {name for name, digest in digests.items() if digest == model.base.get(public_name(name, model))}


def to_store(model: TubeViT) -> dict[str, Tensor]:
    """All tensors under their names on disk, but those of frozen blocks that the public backbone alone still has."""
    state, trunk = model.state_dict(), model.trunk
    for name in [] if trunk is None else [name for name in state if name.startswith("trunk.blocks.")]:
        if trunk.precision != "float32" or state[name].is_meta:  # type: ignore[union-attr]
            original = trunk.originals.get(name.removeprefix("trunk."))  # type: ignore[union-attr]
            if original is None and not model.base:  # they wait in a full directory
                index, own_name = name.removeprefix("trunk.blocks.").split(".", 1)
                original = trunk.file.read(int(index), own_name)  # type: ignore[union-attr]
            state |= {name: original} if original is not None else {}
            if original is None:
                del state[name]
    return {public_name(name, model): tensor.detach().cpu().contiguous() for name, tensor in state.items()}


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


def assign(model: TubeViT, found: Mapping[str, Tensor]) -> None:
    """Put tensors into a model without a copy, parameters staying frozen or trainable as they were."""
    names = {name: public_name(name, model) for name in model.state_dict()}
    state = {name: found[public] for name, public in names.items() if public in found}
    model.load_state_dict(state, strict=False, assign=True)
    if model.trunk is not None:
        model.trunk.requires_grad_(False)
