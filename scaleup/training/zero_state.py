"""What an arm's training has come to, by parameter name, whichever way ZeRO spreads it over the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scaleup.common.distributed import World
from scaleup.errors import UserError
from scaleup.training.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """The part of a parameter's optimizer state that this rank has: places ``here`` of the parameter (flat) are places
    ``there`` of ``holder``, the tensor that the optimizer updates."""

    holder: Tensor
    here: slice
    there: slice


def gather(engine: Engine, world: World) -> dict[str, Tensor]:
    """What trains, and the optimizer's state where it has one: ``arm/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME`` of
    the parameter's shape and ``step/NAME``. On the first rank, on the CPU; all ranks must call."""
    found = {f"arm/{name}": tensor for name, tensor in weights(engine.arm).items()}
    for name, parameter, piece, known in _pieces(engine):
        for key in MOMENTS if known else ():
            found[f"{key}/{name}"] = _whole(parameter, known[key], piece, world)
        if known:
            found[f"step/{name}"] = known["step"]
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}
    return copies if world.rank == 0 else {}


@torch.no_grad()
def restore(engine: Engine, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`gather` found, on any number of ranks and at any ZeRO stage.

    Raises:
        UserError: the arm has other tensors than these.
    """
    own = weights(engine.arm)
    held = {name.removeprefix("arm/") for name in tensors if name.startswith("arm/")}
    if held != own.keys():
        raise UserError(f"the checkpoint is of another model: {', '.join(sorted(held ^ own.keys())[:6])}")
    for name, tensor in own.items():
        tensor.copy_(tensors[f"arm/{name}"])
    engine.refresh_holders()
    for name, _, piece, known in _pieces(engine):
        if f"step/{name}" not in tensors:
            continue
        for key in MOMENTS:
            kept = known.setdefault(key, torch.zeros_like(piece.holder))
            kept.view(-1)[piece.there] = tensors[f"{key}/{name}"].flatten()[piece.here].to(kept)
        known["step"] = tensors[f"step/{name}"].to(piece.holder)


def weights(arm: nn.Module) -> dict[str, Tensor]:
    """All that an arm does not share with the trunk."""
    frozen = {name for name, parameter in arm.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in arm.state_dict().items() if name not in frozen}


def _pieces(engine: Engine) -> Iterator[tuple[str, nn.Parameter, Piece, dict[str, Any]]]:
    """For each parameter that trains: its name, this rank's piece of it, and the optimizer's state of the holder."""
    names = {parameter: name for name, parameter in engine.arm.named_parameters()}
    for parameter, holder in engine.holders():
        piece = Piece(holder, slice(None), slice(None))
        if holder is not parameter:
            part: Any = parameter._hp_mapping  # type: ignore[attr-defined]  # None: other ranks have all of it
            here, there = (part.lp_fragment_address, part.hp_fragment_address) if part else (None, None)
            piece = Piece(holder, _slice(here), _slice(there))
        yield names[parameter], parameter, piece, engine.optimizer.state[holder]


def _slice(address: Any) -> slice:
    return slice(address.start, address.start + address.numel) if address else slice(0, 0)


def _whole(parameter: nn.Parameter, kept: Tensor, piece: Piece, world: World) -> Tensor:
    """Put the pieces of all ranks together, bit for bit: as whole numbers, since 0.0 + -0.0 is 0.0."""
    if piece.holder is parameter:
        return kept
    whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=kept.device)
    whole[piece.here] = kept[piece.there]
    world.sum(whole.view(torch.int32))
    return whole.view(parameter.shape)
