"""The frozen part of a model: run once a batch, whatever the number of arms; its precision, and where blocks wait.

Blocks wait on the device, on the host or in a file. No optimizer, checkpoint or collective operation sees them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from scaleup.backbones.backbone import BlockFile
from scaleup.common.errors import UserError
from scaleup.common.pinned import pinned
from scaleup.common.timing import measure_in_turns, now
from scaleup.model.cuda_graphs import CudaGraphs
from scaleup.model.kernels import Call, computed, every_token, first_token
from scaleup.model.slots import Slots, pin
from scaleup.model.tokenizer import Context, Tokenizer, size_of

COMPUTED_IN = {  # precision of the weights -> of what is computed with them
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.bfloat16,  # weights only, a scale for each row of a matrix
}
MEASURED = ("float32", "bfloat16", "float16")  # what ``auto`` chooses from; int8 saves memory, not time


class Taps(NamedTuple):
    """What an arm reads from the trunk: z0 and h, both (B, P+N, D), and what its blocks get beside them. z0 is None
    where it would be read from a file and no arm has a gate.

    ``lower`` has the tokens at smaller depths, where some arm reads them (``arm.taps``). ``first`` (B, 1, D) is the
    class token from a block that was computed for it alone; h is the same tensor if no arm reads other tokens.
    """

    z0: Tensor | None
    h: Tensor
    context: Context = Context()
    lower: Mapping[int, Tensor] = {}
    first: Tensor | None = None


def taps_of(z0: Tensor | None, tokens: Mapping[int, Tensor], context: Context) -> dict[int, Taps]:
    """Taps at each depth of ``tokens``."""
    return {
        depth: Taps(z0, h, context, {below: tokens[below] for below in tokens if below < depth})
        for depth, h in tokens.items()
    }


Inputs = dict[int, Tensor | Taps]  # of arms, by frozen depth; where nothing is frozen, the pixels themselves


class Passed(NamedTuple):
    """The tensors of a pass of the trunk: ``alone``, by depth, has class tokens (B, 1, D) from a block that was
    computed for them alone; ``tokens``, by depth, all tokens (B, P+N, D)."""

    z0: Tensor
    context: Context
    alone: dict[int, Tensor]
    tokens: dict[int, Tensor]


class Trunk(nn.Module):
    """Tokenizer and frozen blocks: never trained, never in train mode, no autograd graph.

    Blocks may be in low precision (:func:`cast_trunks`), on the host or in a file; z0 and the taps are float32 all the
    same.
    """

    def __init__(self, tokenizer: Tokenizer, blocks: Iterable[nn.Module], file: BlockFile | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.blocks = nn.ModuleList(blocks)
        self.file = file  # of those blocks that are on the meta device
        self.precision, self.kernels = "float32", "library"
        self.graphs: CudaGraphs | None = None  # of the pass, where a GPU has recorded it
        self.originals: dict[str, Tensor] = {}  # float32 content of blocks that were cast, where no file holds it
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in eval mode: a frozen trunk has no drop path and no dropout."""
        return super().train(False)

    @torch.no_grad()  # not inference mode: its tensors cannot be saved for the arm's backward pass
    def forward(self, x: Tensor, depths: Iterable[int], first: Iterable[int] = ()) -> dict[int, Taps]:
        """x (B, 3, T, H, W) or (B, 3, H, W) -> taps after each of ``depths`` and ``first`` blocks, in one pass.

        Args:
            first: depths at which some arm reads the class token alone. The block below is computed for it alone, even
                where others read all tokens: so an arm gets the same bits whatever trains beside it.
        """
        sets = frozenset(depths), frozenset(first)
        passed = self._pass(x, *sets) if self.graphs is None else self.graphs(self._pass, x, *sets)
        taps = taps_of(passed.z0, passed.alone | passed.tokens, passed.context)
        return {depth: each._replace(first=passed.alone.get(depth)) for depth, each in taps.items()}

    def _pass(self, x: Tensor, depths: frozenset[int], first: frozenset[int]) -> Passed:
        dtype = COMPUTED_IN[self.precision]
        z0, context = self.tokenizer(x), self.tokenizer.context(size_of(x))
        h, cast_context, deepest = z0.to(dtype), context.to(dtype), max(depths | first)
        tokens, alone = dict[int, Tensor](), dict[int, Tensor]()
        for index, block in enumerate(iterate_blocks(self.blocks[:deepest], h.device, self.file, dtype)):
            call, depth = partial(block, h, **cast_context.at(index)), index + 1
            if depth in first:
                alone[depth] = call(computed(first_token, self.kernels)).to(z0.dtype)
            if depth < deepest or depth in depths:
                h = call(computed(every_token, self.kernels))
            if depth in depths:
                tokens[depth] = h.to(z0.dtype)
        return Passed(z0, context, alone, tokens)

    def place(self, device: torch.device, placement: str | None) -> None:
        """Move to the device all but the blocks that wait elsewhere, on the host in pinned memory; None: all wait where
        they are."""
        self.tokenizer.to(device)
        for block in self.blocks if placement is not None else ():
            if placement == "host" and device.type != "cpu":
                pin(block)
            elif placement != "host" and not is_on_meta(block):
                block.to(device)


def is_on_meta(block: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in block.parameters())


def cast_trunks(trunks: list[Trunk], precision: str, public: set[str]) -> None:
    """Put the blocks that trunks share into a precision, one at a time, unless those of the deepest trunk are in it.

    Args:
        public: names (``blocks.3.attn.qkv.weight``) whose content the public backbone has; the float32 content of all
            others stays in the host's memory, for saving.
    """
    deepest = max(trunks, key=lambda trunk: len(trunk.blocks))
    for index, block in enumerate(deepest.blocks):
        if deepest.precision != precision and not is_on_meta(block):
            tensors = {f"blocks.{index}.{name}": tensor for name, tensor in block.state_dict().items()}
            deepest.originals |= {name: tensor.cpu() for name, tensor in tensors.items() if name not in public}
            block = cast(block, precision)
        for trunk in trunks:
            if index < len(trunk.blocks):
                trunk.blocks[index] = block
    for trunk in trunks:
        trunk.precision, trunk.originals = precision, deepest.originals


def cast(block: nn.Module, precision: str) -> nn.Module:
    """A copy of a block in a precision (a key of COMPUTED_IN); the block itself where it is float32 already."""
    if precision == "float32":
        return block
    copied = copy.deepcopy(block).to(COMPUTED_IN[precision])
    if precision == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # seconds to import

        quantize_(copied, Int8WeightOnlyConfig())
    return copied.requires_grad_(False)


@torch.inference_mode()
def measure_precisions(block: nn.Module, h: Tensor, context: Context) -> dict[str, float]:
    """The seconds that the first block takes in each precision of MEASURED, on this device.

    Args:
        h: float32 tokens (B, N, D) that enter the block.
        context: what the block gets beside them.
    """
    calls = {}
    for precision in MEASURED:
        dtype = COMPUTED_IN[precision]
        calls[precision] = partial(cast(block, precision), h.to(dtype), **context.to(dtype).at(0))
    seconds = measure_in_turns(calls, lambda: now(h.device))
    return {precision: median(times) for precision, times in seconds.items()}


def drift(exact: Tensor, tokens: Tensor) -> float:
    """RMS of the difference of tokens from the exact ones, over the RMS of these.

    Raises:
        UserError: the tokens are not finite.
    """
    if not tokens.isfinite().all():
        raise UserError("the trunk overflows in this precision; choose trunk.precision float32 or bfloat16")
    return ((tokens.double() - exact).square().mean() / exact.double().square().mean()).sqrt().item()


def load_block(blocks: nn.ModuleList, index: int, file: BlockFile | None) -> nn.Module:
    """A float32 copy of a block, with all of it in memory."""
    block = copy.deepcopy(blocks[index])
    if file is not None:
        file.fill(index, block)
    return block


def iterate_blocks(
    blocks: nn.ModuleList, device: torch.device, file: BlockFile | None, dtype: torch.dtype
) -> Iterator[Callable[..., Tensor]]:
    """Blocks ready to be called, in order. Those that are elsewhere are fetched while the one before computes.

    A block on the meta device is read from ``file`` in precision ``dtype``; one that is not on ``device`` is copied to
    one of two places there. Beside the tokens, each gets what computes it: ``every_token``, or another :data:`Call`.
    """
    if all(_is_on(block, device) for block in blocks):
        yield from (partial(_call, block, None) for block in blocks)
        return
    slots = Slots(device) if device.type != "cpu" else None
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(_fetched, blocks, device, file, dtype, 0)
        for index, block in enumerate(blocks):
            fetched = ahead.result()
            if index + 1 < len(blocks):
                ahead = pool.submit(_fetched, blocks, device, file, dtype, index + 1)
            if fetched is None or slots is None:
                yield partial(_call, block, fetched)
            else:
                with slots.filled(fetched) as copies:
                    yield partial(_call, block, copies)


def _is_on(block: nn.Module, device: torch.device) -> bool:
    return all(parameter.device == device for parameter in block.parameters())


def _fetched(
    blocks: nn.ModuleList, device: torch.device, file: BlockFile | None, dtype: torch.dtype, index: int
) -> dict[str, Tensor] | None:
    """All tensors of a block on the host; None where they are on the device already."""
    block = blocks[index]
    if _is_on(block, device):
        return None
    own: dict[str, Tensor] = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    if not any(tensor.is_meta for tensor in own.values()):
        return own
    assert file is not None
    read = {name: file.read(index, name) if tensor.is_meta else tensor for name, tensor in own.items()}
    cast = {name: tensor.to(dtype) for name, tensor in read.items()}
    return {name: pinned(tensor) for name, tensor in cast.items()} if device.type != "cpu" else cast


class Called(nn.Module):
    """A block that ``call(block, h, **context)`` computes."""

    def __init__(self, block: nn.Module, call: Call) -> None:
        super().__init__()
        self.block, self.call = block, call

    def forward(self, h: Tensor, **context: Tensor) -> Tensor:
        return self.call(self.block, h, **context)


def _call(
    block: nn.Module, fetched: dict[str, Tensor] | None, h: Tensor, call: Call = every_token, **context: Any
) -> Tensor:
    """The output of a block, as ``call`` computes it, with the tensors that were ``fetched`` for it."""
    if fetched is None:
        return call(block, h, **context)
    tensors = {f"block.{name}": tensor for name, tensor in fetched.items()}
    return functional_call(Called(block, call), tensors, (h,), context)


@contextmanager
def fill_on_call(blocks: Iterable[nn.Module], file: BlockFile | None) -> Iterator[None]:
    """Inside, blocks on the meta device read their float32 tensors from ``file`` whenever they are called."""
    handles = []
    for index, block in enumerate(blocks):
        empty = {name: tensor for name, tensor in block.state_dict().items() if tensor.is_meta}
        if empty and file is not None:
            handles += [
                block.register_forward_pre_hook(partial(_filled, file, index)),
                block.register_forward_hook(partial(_emptied, empty)),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _filled(file: BlockFile, index: int, block: nn.Module, _: Any) -> None:
    file.fill(index, block)


def _emptied(empty: Mapping[str, Tensor], block: nn.Module, *_: Any) -> None:
    block.load_state_dict(empty, strict=False, assign=True)
