"""Memory of the host that a GPU reads by itself: copies from it wait for nothing."""

from __future__ import annotations

from torch import Tensor

from scaleup.common.errors import UserError
from scaleup.common.processes import is_full
from scaleup.common.text import format_bytes


def pinned(tensor: Tensor) -> Tensor:
    """``tensor`` in such memory; itself if it is there already.

    Raises:
        UserError: the host has no memory left.
    """
    try:
        return tensor.pin_memory()
    except RuntimeError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"the host has no memory left for {format_bytes(tensor.nbytes)} that the GPU reads by itself (pinned); use "
            "a smaller batch (data.batch, --batch), trunk.placement=device (--placement device), or fewer ranks on "
            "this machine"
        ) from error
