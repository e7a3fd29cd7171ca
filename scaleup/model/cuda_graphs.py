"""Work that a GPU has recorded, and does again in one call.

The host starts hundreds of small programs for a pass of frozen blocks. With few tokens this may take longer than the
programs. A CUDA graph starts them all at once; it computes the same bits.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from scaleup.common.errors import UserError, first_line
from scaleup.common.processes import is_full

MOST = 16  # recordings that are kept: shapes of a batch, times the depths at which arms read


class Recording(NamedTuple):
    """A graph, the tensor that it reads, and what it writes."""

    graph: Any
    x: Tensor
    outputs: Any

    def replay(self, x: Tensor) -> Any:
        """The outputs for ``x``; they belong to the caller."""
        self.x.copy_(x)
        self.graph.replay()
        return tree_map_only(Tensor, Tensor.clone, self.outputs)


class CudaGraphs:
    """Calls ``work(x, *how)``: recorded when a shape of x or a ``how`` is new, replayed from then on.

    The tensors that the work reads beside x must stay where they are. Work that waits for the device cannot be
    recorded, nor work for which no memory is left: the host starts it, after a sentence.

    Raises:
        UserError: a recording fails. torch's allocator may then take it for one that goes on, so nothing can follow.
    """

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()  # one memory for all: outputs are copied before another graph runs
        self.recordings: dict[Hashable, Recording | None] = {}

    def __call__(self, work: Callable[..., Any], x: Tensor, *how: Hashable) -> Any:
        key = x.shape, x.dtype, how
        recording = self.recordings.pop(key) if key in self.recordings else self._record(work, x, *how)
        self.recordings[key] = recording  # behind those that were used before
        if len(self.recordings) > MOST:
            del self.recordings[next(iter(self.recordings))]
        return work(x, *how) if recording is None else recording.replay(x)

    @torch.inference_mode(False)  # a recording of a validation serves training too
    @torch.no_grad()
    def _record(self, work: Callable[..., Any], x: Tensor, *how: Hashable) -> Recording | None:
        entered = x.clone()
        work(entered, *how)  # compiles blocks, makes tables, chooses algorithms
        if wait := _first_wait(lambda: work(entered, *how)):
            print(f"no CUDA graph of the trunk, which waits for the GPU: {wait}", file=sys.stderr)
            return None
        try:
            graph = torch.cuda.CUDAGraph()
            recorded = torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local")
            with torch.cuda.stream(torch.cuda.current_stream()), recorded:  # a fault does not leave the graph's stream
                return Recording(graph, entered, work(entered, *how))
        except RuntimeError as error:
            if is_full(error):
                print("no CUDA graph of the trunk: no memory is left for it", file=sys.stderr)
                return None
            cause = first_line(error)
            raise UserError(f"the GPU cannot record the trunk ({cause}); use train.cuda_graphs=off") from error


def can_record(device: torch.device) -> bool:
    """Whether this GPU, with its driver, records and replays: tried with a sum."""
    with suppress(RuntimeError, UserError):
        graphs, zero = CudaGraphs(), torch.zeros(1, device=device)
        return all(graphs(lambda x: x + 1, zero + number).item() == number + 1 for number in (0, 1))
    return False


def _first_wait(work: Callable[[], Any]) -> str:
    """What torch says of the first wait of the host in ``work``; "" if there is none."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype, which may overlook waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        if is_full(error):
            raise
        return first_line(error)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return ""
