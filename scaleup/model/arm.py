"""The part of a model that trains: the gate of Equation 8, the late blocks, norm and pool, and the heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.common.errors import UserError
from scaleup.model.kernels import computed, every_token, first_token, knows_first_token, pools_first, products_in
from scaleup.model.tokenizer import Tokenizer, size_of
from scaleup.model.trunk import Taps
from scaleup.model.tubes import module_name

Heads = Mapping[str, list[str]]  # head -> names of its classes


class Gate(nn.Module):
    """Equation 8: h + tanh(alpha) z0. The gate starts closed (alpha = 0).

    alpha is one number, as in the paper, or ``channels`` numbers, one for each channel of the tokens.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))

    @classmethod
    def of(cls, kind: bool | str, embed_dim: int) -> Gate | None:
        """The gate for the value of ``gate`` in a recipe or a ``config.json``, for tokens of this width; None for no
        gate."""
        return cls(embed_dim if kind == "channel" else 1) if kind else None

    def forward(self, h: Tensor, z0: Tensor) -> Tensor:
        return h + self.alpha.tanh().to(z0.dtype) * z0

    def begin_as(self, other: Gate) -> None:
        """Start with the alpha of another gate. If the other has one alpha, every channel gets it.

        Raises:
            UserError: the other one has an alpha for each channel, and this one has not.
        """
        if len(other.alpha) > len(self.alpha):
            raise UserError(
                f"the gate of this model has an alpha for each of {len(other.alpha)} channels, and an arm must keep "
                "them; allowed are gate: channel, and gate: false"
            )
        with torch.no_grad():
            self.alpha.copy_(other.alpha)


def alphas(gate: Gate | None) -> dict[str, Tensor]:
    """The values of a gate for the log, on its device: ``alpha``; with an alpha for each channel, their mean, and the
    largest absolute value as ``alpha_largest``. Empty without a gate."""
    if gate is None:
        return {}
    alpha = gate.alpha.detach()
    mean = {"alpha": alpha.mean()}
    return mean if len(alpha) == 1 else mean | {"alpha_largest": alpha.abs().max()}


class NumberHead(nn.Linear):
    """A head that gives a number (B, 1), in the units of the label; what it learns is about 0 and 1 in size."""

    def __init__(self, width: int, mean: float, std: float) -> None:
        super().__init__(width, 1)
        self.mean, self.std = mean, std

    def forward(self, features: Tensor) -> Tensor:
        return self.mean + self.std * super().forward(features).float()


class Arm(nn.Module):
    """Everything above the trunk: gate, late blocks, norm and pool, heads. If nothing is frozen, the tokenizer too.

    ``pool`` stands for the backbone's own norm and pool, the ``tail``, which then stays as it is.
    ``grad_checkpointing`` recomputes each block in the backward pass instead of keeping its activations; ``kernels``
    says how blocks are computed (:mod:`scaleup.model.kernels`).
    """

    grad_checkpointing, kernels = False, "library"

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        gate: Gate | None,
        first: int,
        blocks: list[nn.Module],
        tail: Any,
        heads: Heads,
        pool: Any = None,
        losses: Mapping[str, HeadLoss] | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.gate = gate
        self.blocks = nn.ModuleDict({str(first + index): block for index, block in enumerate(blocks)})
        self.tail, self.pool = tail, pool
        self.heads, width = nn.ModuleDict(), (tail if pool is None else pool).embed_dim
        for name, classes in heads.items():
            loss = (losses or {}).get(name, HeadLoss())
            is_number = loss.kind in ("l2", "l1")
            layer = NumberHead(width, loss.mean, loss.std) if is_number else nn.Linear(width, len(classes))
            self.heads[module_name("a head", name)] = layer

    def features(self, inputs: Tensor | Taps) -> Tensor:
        """Taps, or pixels where nothing is frozen, -> pooled features (B, D), of an attentive pool (B, queries * D)."""
        if isinstance(inputs, Tensor):
            assert self.tokenizer is not None
            z0 = self.tokenizer(inputs)
            inputs = Taps(z0, z0, self.tokenizer.context(size_of(inputs)))
        h, of_blocks = inputs.h, inputs.context.to(products_in(inputs.h))
        if self.reads_first:
            h = (h if inputs.first is None else inputs.first)[:, :1]
        if self.gate is not None:
            assert inputs.z0 is not None
            h = self.gate(h, inputs.z0[:, :1] if self.reads_first else inputs.z0)
        for index, block in self.blocks.items():
            call, context = self._call(index, block), of_blocks.at(int(index))
            if self.grad_checkpointing and torch.is_grad_enabled():
                h = checkpoint(call, h, use_reentrant=False, **context)  # type: ignore[call-overload]
            else:
                h = call(h, **context)
        return self.tail(h) if self.pool is None else self.pool(h, inputs.lower)

    @property
    def reads_first(self) -> bool:
        """Whether it is a head, behind a gate or not, that reads the class token of the trunk alone."""
        return not self.blocks and self._pools_first

    @property
    def _pools_first(self) -> bool:
        """Whether features are made of the class token alone; with ``library`` kernels all tokens are computed."""
        return self.kernels != "library" and self.pool is None and pools_first(self.tail)

    def _call(self, index: str, block: nn.Module) -> Callable[..., Tensor]:
        """How a block is called: the last one for the class token alone where no other is read."""
        last = index == list(self.blocks)[-1]
        alone = last and self._pools_first and knows_first_token(block)
        return partial(computed(first_token if alone else every_token, self.kernels), block)

    def train(self, mode: bool = True) -> Arm:
        """Set the mode; blocks in which nothing trains stay in eval mode, as the trunk does."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.blocks.parameters()):
            self.blocks.train(False)
        return self

    def forward(self, inputs: Tensor | Taps, head: str) -> Tensor:
        """Logits of one head: (B, C)."""
        return self.heads[head](self.features(inputs))


def generator_of(name: str, seed: int) -> torch.Generator:
    """A random generator that depends only on (seed, name), so that an arm starts equally in a sweep and in its own
    run."""
    return torch.Generator().manual_seed(seed + sum(ord(c) * 257**i for i, c in enumerate(name)) % 2**31)


def init_head(head: nn.Module, name: str, seed: int) -> None:
    """Initialise a classifier by fan-in, with zero bias. It depends only on (seed, name)."""
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        drawn = torch.randn(head.weight.shape, generator=generator_of(name, seed))
        head.weight.copy_(drawn * head.in_features**-0.5)
        head.bias.zero_()
