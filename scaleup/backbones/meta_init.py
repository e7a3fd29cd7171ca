"""Models on the meta device are built without drawing their initial values, which would take most of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

IN_PLACE = ("normal_", "uniform_", "fill_", "zero_", "mul_", "div_", "add_", "clamp_", "erfinv_")
INITIALIZERS = ("normal_", "uniform_", "constant_", "kaiming_uniform_")


class Undrawn(TorchFunctionMode):
    """What would change the values of a tensor on the meta device in place is left undone."""

    DRAWS = frozenset(
        [getattr(torch.Tensor, name) for name in IN_PLACE] + [getattr(torch.nn.init, name) for name in INITIALIZERS]
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = (args[0] if args else kwargs["tensor"]) if func in self.DRAWS else None
        return drawn if drawn is not None and drawn.is_meta else func(*args, **kwargs)
