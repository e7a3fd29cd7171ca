"""The weights of an arm and the state of its optimizer, whole, however ranks divide them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.training.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """This rank's part of a parameter of some ``shape``: elements ``here`` of the flat parameter are elements ``there``
    of ``holder``, the tensor that the optimizer updates; None: the holder is the parameter."""

    holder: Tensor
    shape: torch.Size
    here: slice | None = None
    there: slice | None = None


def gather(engine: Engine, world: World) -> dict[str, Tensor]:
    """The trained parameters and the optimizer's state, on the first rank, on the CPU. All ranks must call.

    The names are ``arm/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME`` (of the parameter's shape) and ``step/NAME``."""
    with engine.whole():
        copies = {f"arm/{name}": _copy(tensor) for name, tensor in weights(engine.arm).items()}
    for name, piece, state in _pieces(engine):
        for key in MOMENTS if state else ():
            copies[f"{key}/{name}"] = _copy(_whole(state[key], piece, world))
        if state:
            copies[f"step/{name}"] = _copy(state["step"])
    return copies if world.rank == 0 else {}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


@torch.no_grad()
def restore(engine: Engine, tensors: dict[str, Tensor]) -> None:
    """Restore what :func:`gather` returned, with any number of ranks and any ZeRO stage.

    Raises:
        UserError: the arm has other tensors than these.
    """
    names = {name.removeprefix("arm/") for name in tensors if name.startswith("arm/")}
    with engine.whole(changes=True):
        own = weights(engine.arm)
        if names != own.keys():
            raise UserError(f"the checkpoint is of another model: {', '.join(sorted(names ^ own.keys())[:6])}")
        for name, tensor in own.items():
            tensor.copy_(tensors[f"arm/{name}"])
    engine.refresh_holders()
    for name, piece, state in _pieces(engine):
        if f"step/{name}" not in tensors:
            continue
        for key in MOMENTS:
            moment = state.setdefault(key, torch.zeros_like(piece.holder))
            here, there = piece.here or slice(None), piece.there or slice(None)
            moment.view(-1)[there] = tensors[f"{key}/{name}"].flatten()[here].to(moment)
        state["step"] = tensors[f"step/{name}"].to(piece.holder)


def weights(arm: nn.Module) -> dict[str, Tensor]:
    """The tensors that an arm does not share with the trunk."""
    frozen = {name for name, parameter in arm.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in arm.state_dict().items() if name not in frozen}


def _pieces(engine: Engine) -> Iterator[tuple[str, Piece, dict[str, Any]]]:
    """Each trained parameter: its name, this rank's part of it, and the optimizer's state of the holder."""
    names = {parameter: name for name, parameter in engine.arm.named_parameters()}
    for parameter, holder in engine.holders():
        piece = Piece(holder, parameter.shape)
        if engine.divides:
            piece = _divided(engine, parameter, holder)
        elif holder is not parameter:
            part: Any = parameter._hp_mapping  # type: ignore[attr-defined]  # None: other ranks have all of it
            here, there = (part.lp_fragment_address, part.hp_fragment_address) if part else (None, None)
            piece = Piece(holder, parameter.shape, _slice(here), _slice(there))
        yield names[parameter], piece, engine.optimizer.state[holder]


def _divided(engine: Engine, parameter: Any, holder: Tensor) -> Piece:
    """Of stage 3: every rank has an equally long part of each parameter; the last ones may be filled up."""
    size, whole = parameter.partition_numel(), parameter.ds_numel
    begin, end = min(engine.rank * size, whole), min((engine.rank + 1) * size, whole)
    zero = engine.engine.optimizer
    offset = zero.grad_position[zero.get_param_id(parameter)][1]
    return Piece(holder, parameter.ds_shape, slice(begin, end), slice(offset, offset + end - begin))


def _slice(address: Any) -> slice:
    return slice(address.start, address.start + address.numel) if address else slice(0, 0)


def _whole(part: Tensor, piece: Piece, world: World) -> Tensor:
    """Combine the parts of all ranks, bit for bit: they are summed as integers, because 0.0 + -0.0 is 0.0.

    Parts that are on the host travel by the device: NCCL takes no others."""
    if piece.here is None:
        return part
    whole = torch.zeros(piece.shape.numel(), dtype=torch.float32, device=world.device)
    whole[piece.here] = part[piece.there]
    world.sum(whole.view(torch.int32))
    return whole.view(piece.shape)
