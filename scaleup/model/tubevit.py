"""The model: tokenizer, frozen trunk, trained arm. Small joint models and adapted ViTs have the same class.

x -> tokenizer -> z0 -> trunk: blocks[:s], frozen -> h -> arm: h + tanh(alpha) z0, blocks[s:], norm, pool, heads
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scaleup.backbones.backbone import Backbone, BlockFile
from scaleup.checkpoint.model_directory import HeadLoss, ModelConfig, Pool, is_of_adapter
from scaleup.common.errors import UserError, nearest
from scaleup.model import adapter
from scaleup.model.adapter import FULL, Adapt
from scaleup.model.arm import Arm, Gate, Heads, generator_of, init_head
from scaleup.model.kernels import knows_first_token
from scaleup.model.pool import init_pool, make_pool
from scaleup.model.pretrained import Pretrained
from scaleup.model.tokenizer import Preprocess, Tokenizer
from scaleup.model.trunk import Inputs, Taps, Trunk, is_on_meta, load_block


class TubeViT(Pretrained):
    """An image ViT for images and videos. Blocks below ``frozen_depth`` are frozen; trained parts are in ``arm``.

    Args:
        config: the content of ``config.json``.
        tokenizer, blocks, tail: the parts of the backbone; all blocks, frozen or not.
        block_prefix: the names of a block's tensors in the backbone's library begin with this and the block's number.
        file: has the weights of the frozen blocks that are on the meta device.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        blocks: list[nn.Module],
        tail: nn.Module,
        block_prefix: str = "blocks.",
        file: BlockFile | None = None,
    ) -> None:
        super().__init__()
        depth, frozen = len(blocks), config.frozen_depth
        if not 0 <= frozen <= depth:
            raise UserError(f"frozen_depth {frozen} does not fit a model of {depth} blocks; allowed are 0 to {depth}")
        if config.gate and not frozen:
            raise UserError("a gate needs frozen blocks below it; with frozen_depth 0 set gate: false")
        if above := [depth for depth in (config.pool.taps if config.pool else ()) if depth >= frozen]:
            raise UserError(f"taps {above[0]} is not below frozen_depth, {frozen}")
        self.config, self.depth, self.frozen_depth, self.block_prefix = config, depth, frozen, block_prefix
        self.base: dict[str, str] = {}  # sha256 of each tensor of the public backbone, if there is one
        self.report: dict[str, Any] = {}  # measurements of the transplant or the training
        self.preprocess = Preprocess(config.input)
        self.trunk = Trunk(tokenizer, blocks[:frozen], file) if frozen else None
        own_tokenizer = None if frozen else tokenizer
        gate = Gate.of(config.gate, tokenizer.embed_dim)
        pool = make_pool(config.pool, tail, tokenizer.embed_dim)
        self.arm = Arm(own_tokenizer, gate, frozen, blocks[frozen:], tail, config.heads, pool, config.losses)

    @classmethod
    def assemble(cls, config: ModelConfig, backbone: Backbone, seed: int = 0) -> Self:
        """A model with this ``config`` and backbone; tubes, heads and adapters are random."""
        tokenizer, file = Tokenizer(config, backbone), backbone.block_file()
        model = cls(config, tokenizer, backbone.blocks, backbone.tail, backbone.block_prefix, file)
        if model.arm.pool is not None:
            init_pool(model.arm.pool, generator_of("pool", seed))
        for name, head in model.arm.heads.items():
            init_head(head, name, seed)
        if config.adapter:
            adapter.inject(model.arm.blocks, config.adapter, seed)
        return model

    def tokenize(self, x: Tensor) -> Tensor:
        """z0 (B, P+N, D) of normalised images (B, 3, H, W) or videos (B, 3, T, H, W); prefix tokens first."""
        return self.tokenizer(self._checked(x))

    def arm_inputs(self, x: Tensor) -> Tensor | Taps:
        """The input of the arm for x: the trunk's taps, all tokens of them, or x itself if nothing is frozen."""
        return x if self.trunk is None else self.trunk(x, depths_of([self]))[self.frozen_depth]

    def forward_features(self, x: Tensor) -> Tensor:
        """Pooled features (B, D)."""
        return self.arm.features(arm_inputs(self.trunk, self._checked(x), [self])[self.frozen_depth])

    def forward(self, x: Tensor, head: str | None = None) -> Tensor:
        """Logits (B, C) of a head; ``head`` may be None if there is only one."""
        name = self.head_name(head)
        return self.arm.heads[name](self.forward_features(x))

    def _checked(self, x: Tensor) -> Tensor:
        height, width = self.preprocess.size
        if x.dim() not in (4, 5) or x.shape[1] != 3 or x.shape[-2:] != (height, width):
            allowed = f"(B, 3, T, {height}, {width}) and (B, 3, {height}, {width})"
            raise UserError(f"input of shape {tuple(x.shape)}; allowed are {allowed}")
        return x

    def head_name(self, head: str | None) -> str:
        """The name of the head to use; None means the only one. UserError if there is no such head."""
        heads = list(self.arm.heads)
        if head is None and len(heads) == 1:
            return heads[0]
        if head not in heads:
            asked = "no head was named" if head is None else f"there is no head {head!r}"
            raise UserError(
                f"{asked}; this model has {', '.join(map(repr, heads)) or 'none'}{nearest(head or '', heads)}"
            )
        return head

    def count_tokens(self, frames: int) -> int:
        """The number of tokens of an input with this number of frames; an image has one frame."""
        size = (frames, *self.preprocess.size)
        return self.tokenizer.num_prefix_tokens + sum(spec.tokens(size) for spec in self.tokenizer.specs(size))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.trunk.tokenizer if self.trunk is not None else self.arm.tokenizer  # type: ignore[return-value]

    @property
    def reads_first(self) -> bool:
        """Whether the arm reads the class token of the trunk alone, and the last block can be computed for it alone."""
        return self.trunk is not None and self.arm.reads_first and knows_first_token(self.trunk.blocks[-1])

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, frozen ones first."""
        return [*(self.trunk.blocks if self.trunk is not None else ()), *self.arm.blocks.values()]

    def place(self, device: torch.device, placement: str | None = "device") -> TubeViT:
        """Move to a device all but the frozen blocks that wait on the host or in a file; None: all of them wait."""
        self.arm.to(device)
        if self.trunk is not None:
            self.trunk.place(device, placement)
        return self

    def with_arm(
        self,
        frozen_depth: int,
        gate: bool | str,
        heads: Heads,
        seed: int = 0,
        adapt: Adapt = FULL,
        pool: Pool | None = None,
        losses: Mapping[str, HeadLoss] | None = None,
    ) -> TubeViT:
        """The same model with another frozen depth. It shares the frozen weights of this model, and copies all others.

        Heads with the same classes, loss and pool are copied, and so are the adapter and the pool. Other heads are
        drawn from (seed, name) only, so that an arm starts with the same weights alone and in a sweep. This model must
        not train.

        Args:
            pool: how tokens become features; None: the backbone's own way, in its tail. With a pool, the tail is
                frozen.
            losses: of heads whose loss is not softmax; a head that is copied keeps its mean and standard deviation.

        Raises:
            UserError: the depth, the adapter or the gate does not fit, or this model has another adapter.
        """
        self._refuse_other_adapter(frozen_depth, adapt)
        config = copy.deepcopy(self.config)
        config.frozen_depth = frozen_depth
        config.gate = gate  # type: ignore[assignment]
        config.adapter = adapt.adapter
        config.pool = copy.copy(pool)
        config.heads = {name: list(classes) for name, classes in heads.items()}
        config.losses = {name: copy.copy(loss) for name, loss in (losses or {}).items()}
        copied = [name for name in config.losses if name in self.config.losses and self._has_head(name, config)]
        config.losses |= {name: copy.copy(self.config.losses[name]) for name in copied}
        tokenizer = self.tokenizer if frozen_depth else copy.deepcopy(self.tokenizer)
        blocks = [*self.blocks[:frozen_depth], *self._copy_blocks(frozen_depth, adapt)]
        file = self.trunk.file if self.trunk is not None else None
        model = TubeViT(config, tokenizer, blocks, copy.deepcopy(self.arm.tail), self.block_prefix, file)
        model.base = self.base
        model.report = {key: value for key, value in self.report.items() if key != "evaluations"}  # of another model
        if config.adapter and not self.config.adapter:
            adapter.inject(model.arm.blocks, config.adapter, seed)
        for name, parameter in model.arm.named_parameters():
            late = name.startswith("blocks.") and adapt.kind != "full" and not is_of_adapter(name)
            parameter.requires_grad_(not late and not (pool and name.startswith("tail.")))
        model._begin_as(self, seed)
        return model

    def _has_head(self, name: str, config: ModelConfig) -> bool:
        """Whether this model has a head that a model of ``config`` can begin with."""
        own = self.config
        alike = own.pool == config.pool and own.loss(name) == config.loss(name)
        return alike and own.heads.get(name) == config.heads[name]

    def _begin_as(self, template: TubeViT, seed: int) -> None:
        """Copy the template's pool, heads and gate if they are of the same kind; draw the others."""
        same = template.config.pool == self.config.pool
        if self.arm.pool is not None and same:
            self.arm.pool.load_state_dict(template.arm.pool.state_dict())
        elif self.arm.pool is not None:
            init_pool(self.arm.pool, generator_of("pool", seed))
        for name, head in self.arm.heads.items():
            if template._has_head(name, self.config):
                head.load_state_dict(template.arm.heads[name].state_dict())
            else:
                init_head(head, name, seed)
        if self.arm.gate is not None and template.arm.gate is not None:
            self.arm.gate.begin_as(template.arm.gate)

    def _refuse_other_adapter(self, frozen_depth: int, adapt: Adapt) -> None:
        own = self.config.adapter
        if own is not None and (own, self.frozen_depth) != (adapt.adapter, frozen_depth):
            raise UserError(
                f"this model has a {own.kind} adapter (rank {own.rank}, alpha {own.alpha:g}) above "
                f"{self.frozen_depth} frozen blocks, and an arm can only train that one further; merge it to begin "
                "anew (tools/export.py --merge)"
            )

    def _copy_blocks(self, start: int, adapt: Adapt) -> list[nn.Module]:
        """Copies of the blocks from ``start`` on, in memory; parameters that stay frozen with ``adapt`` are shared."""
        late = self.blocks[start:]
        for index in range(start, self.frozen_depth):
            if self.trunk is not None and is_on_meta(self.blocks[index]):
                late[index - start] = load_block(self.trunk.blocks, index, self.trunk.file)
        shared = [] if adapt.kind == "full" else [pair for block in late for pair in block.named_parameters()]
        return copy.deepcopy(late, {id(tensor): tensor for name, tensor in shared if not is_of_adapter(name)})


def arm_inputs(trunk: Trunk | None, x: Tensor, models: Collection[TubeViT]) -> Inputs:
    """The inputs of the arms of ``models`` by frozen depth, from one pass of the trunk over x; depth 0 gets x itself.

    An arm that reads the class token alone gets it from a block that is computed for it alone.
    """
    whole, first = depths_of([m for m in models if not m.reads_first]), depths_of([m for m in models if m.reads_first])
    return {0: x} | (trunk(x, whole, first) if trunk is not None and (whole or first) else {})


def depths_of(models: Collection[TubeViT]) -> list[int]:
    """The depths of a trunk at which the arms of ``models`` read tokens."""
    depths = {model.frozen_depth for model in models} - {0}
    return sorted(depths.union(*(model.config.pool.taps for model in models if model.config.pool)))
