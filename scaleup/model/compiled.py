"""Blocks as programs that ``torch.compile`` makes of them.

Blocks that are alike (their class, the shapes and types of their tensors, their mode) share one program, because their
weights are its inputs. Tokens of each shape have a program of their own, which no other shape changes: an arm gets the
same program alone and beside others, and a run that goes on the same as one that was not interrupted. What is around
blocks (tokenizer, gate, pool, heads) is not compiled.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from scaleup.common.errors import first_line

Call = Callable[..., Tensor]  # (block, h, **context) -> tokens
BACKEND = "inductor"
MOST = 256  # programs of one kind of call: kinds of blocks times shapes of tokens, with gradients and without


class Stopwatch:
    """The seconds in which torch compiled, since they were last taken."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0

    def start(self, _: Any) -> None:
        self.began = time.perf_counter()

    def stop(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self.began

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


STOPWATCH = Stopwatch()


class Program:
    """A compiled ``call(block, h, **context)``. Where it cannot be compiled, the call itself, after a sentence."""

    def __init__(self, call: Call) -> None:
        self.call, self.compiled = call, torch.compile(call, backend=BACKEND, dynamic=False)
        self.works = True

    def __call__(self, block: nn.Module, h: Tensor, **context: Tensor) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException

        if self.works:
            try:
                return self.compiled(block, h, **context)
            except TorchDynamoException as error:
                self.works = False
                STOPWATCH.take()
                cause = first_line(getattr(error, "inner_exception", error))
                why = f"{type(block).__name__} cannot be compiled here ({cause})"
                print(f"{why}; blocks are computed without, which takes longer", file=sys.stderr)
        return self.call(block, h, **context)


@cache
def program(call: Call) -> Program:
    return Program(call)


def begin_compiling() -> None:
    """Prepare this process. What could not be compiled before is tried again."""
    import torch._dynamo.config
    import torch._functorch.config
    import torch._inductor.config
    from torch._dynamo.callback import callback_handler

    torch._dynamo.config.recompile_limit = MOST
    # With the forward pass, where a failure can be told; not in the middle of the first backward pass.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    torch._functorch.config.backward_pass_autocast = "off"  # as our backward passes
    if hasattr(torch._inductor.config, "deterministic"):  # else programs may differ by what was fastest at that time
        torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    program.cache_clear()
    if STOPWATCH.start not in callback_handler.start_callbacks:
        callback_handler.register_start_callback(STOPWATCH.start)
        callback_handler.register_end_callback(STOPWATCH.stop)
    STOPWATCH.take()


def has_compiler(device: torch.device) -> bool:
    """Whether blocks can be compiled for a GPU: by triton, which needs a C compiler."""
    names = (os.environ.get("CC", "cc"), "gcc", "clang")
    return device.type != "cpu" and find_spec("triton") is not None and any(map(shutil.which, names))
