"""From a file into a model: held against what the model needs, then copied tensor by tensor, never held twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scaleup.common.tensors import File
from scaleup.errors import UserError

IN_PLACE = ("normal_", "uniform_", "fill_", "zero_", "mul_", "div_", "add_", "clamp_", "erfinv_")
INITIALIZERS = ("normal_", "uniform_", "constant_", "kaiming_uniform_")


class SkipInit(TorchFunctionMode):
    """What would change the values of a tensor on the meta device in place is left undone."""

    DRAWS = frozenset(
        [getattr(torch.Tensor, name) for name in IN_PLACE] + [getattr(torch.nn.init, name) for name in INITIALIZERS]
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = (args[0] if args else kwargs["tensor"]) if func in self.DRAWS else None
        return drawn if drawn is not None and drawn.is_meta else func(*args, **kwargs)


OWN = ("tubes.", "positions.", "heads.", "gate.")  # tensors of our own models that are not the backbone's
SHOWN = 3  # differences of a kind that an error names

Arrange = Callable[[Any, dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]


class Loaded(NamedTuple):
    """``left``: tensors that have no place in the model; ``origin``: the model's tensors that are the file's as they
    are, up to their type, with the names they have there."""

    left: dict[str, Tensor]
    origin: dict[str, str]


def load(model: Any, file: File, arrange: Arrange, stay: tuple[str, ...] = ()) -> Loaded:
    """Give a model (on the meta device) the tensors of a file, in float32.

    Args:
        arrange: (model, the file's tensors) -> those under the model's names, in its layout and at its size, and those
            that have no place in it. It is given mapped tensors, and what it does not touch is not read.
        stay: how the names of tensors begin that stay where they are, in a file whose tensors are the model's own.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    own_kind = {name: tensor for name, tensor in file.mapped.items() if name.startswith(OWN)}
    try:
        given, left = arrange(model, {name: t for name, t in file.mapped.items() if name not in own_kind})
    except UserError:
        raise
    except Exception as error:  # libraries take names and shapes for granted
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file.path} does not hold the weights of this model ({reason})") from error
    _refuse_misfits(model.state_dict(), given, file.path)
    as_is = _as_is(given, file.mapped)
    moved = [name for name in as_is if not (stay and name.startswith(stay))]
    copies = file.copies([as_is[name] for name in moved], torch.float32)
    state = dict(zip(moved, copies, strict=True))
    for name in given.keys() - as_is.keys():
        state[name] = given.pop(name).to(torch.float32, copy=True)
    model.load_state_dict(state, strict=False, assign=True)  # misfits are refused above
    origin = {name: file.names[as_is[name]] for name in as_is}
    return Loaded({name: tensor.clone() for name, tensor in (own_kind | left).items()}, origin)


def _as_is(given: Mapping[str, Tensor], mapped: Mapping[str, Tensor]) -> dict[str, str]:
    """Of the tensors given, those that are a file's own, with their names there."""
    places = {_place(tensor): name for name, tensor in mapped.items()}
    return {name: places[_place(tensor)] for name, tensor in given.items() if _place(tensor) in places}


def _place(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _refuse_misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    kinds = {
        "it lacks": [name for name in own if name not in given],
        "it has besides": [name for name in given if name not in own],
        "it differs in": [
            f"{name} {tuple(given[name].shape)} where {tuple(own[name].shape)} belongs"
            for name in own
            if name in given and own[name].shape != given[name].shape
        ],
    }
    if any(kinds.values()):
        faults = "; ".join(f"{words} {_first(names)}" for words, names in kinds.items() if names)
        raise UserError(f"{path} does not hold the weights of this model: {faults}")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
