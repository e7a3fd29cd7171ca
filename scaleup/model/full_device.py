"""A sentence where the memory of a device ends in a pass of models: what takes it, and what needs less."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from scaleup.common.distributed import own_device
from scaleup.common.errors import UserError
from scaleup.common.processes import is_full
from scaleup.common.text import format_gib
from scaleup.data.batches import input_bytes
from scaleup.model.slots import parts_of
from scaleup.model.tubevit import TubeViT


@contextmanager
def explain_full(
    models: Collection[TubeViT], batch: int, views: int, other: str, setting: str = "--batch"
) -> Iterator[None]:
    """Inside, an error by which the device's memory ends is a UserError.

    Args:
        batch, views: samples of a pass, set by ``setting``, and views of each, by --views.
        other: what needs less memory beside fewer of these.
    """
    try:
        yield
    except RuntimeError as error:
        device = own_device()
        if not is_full(error) or device.type == "cpu":
            raise
        total = torch.get_device_module(device).mem_get_info()[1]
        less = [f"a smaller batch than {batch} ({setting})"] * (batch > 1) + ["fewer views (--views)"] * (views > 1)
        raise UserError(
            f"the device has no memory left; of {format_gib(total)} it holds {_parts(models, batch * views)}, and what "
            f"blocks compute of these; use {' or '.join([*less, other])}"
        ) from error


def _parts(models: Collection[TubeViT], clips: int) -> str:
    """What is on the device of the models, and of the pixels of a pass, in words."""
    counted: set[int] = set()
    parts = {
        "trunk": sum(_held(model.trunk, counted) for model in models if model.trunk is not None),
        "arms": sum(_held(model.arm, counted) for model in models),
        f"pixels of {clips} clips": clips * (1 + 4) * input_bytes(next(iter(models)).config.input, "video"),
    }
    return ", ".join(f"{part} {format_gib(size)}" for part, size in parts.items())


def _held(module: nn.Module, counted: set[int]) -> int:
    """Bytes on the device that were not ``counted`` before."""
    held = [part for each in (*module.parameters(), *module.buffers()) for part in parts_of(each)]
    there = {id(part): part.nbytes for part in held if part.device.type not in ("cpu", "meta")}
    new = there.keys() - counted
    counted.update(new)
    return sum(there[key] for key in new)
