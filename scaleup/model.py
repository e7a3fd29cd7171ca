"""The model: tokenizer, trunk (frozen) and arm (what trains). One class for small joint models and adapted ViTs.

x -> tokenizer -> z0 -> trunk: blocks[:s], frozen -> h -> arm: h + tanh(alpha) z0, blocks[s:], norm, pool, heads
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaleup.backbones import Backbone
from scaleup.backbones.build import build
from scaleup.config import FORMAT
from scaleup.errors import UserError, nearest
from scaleup.positions import Fixed, Learned, Relative, sample_grid, time_table
from scaleup.recipe import Model
from scaleup.tubes import Size, TubeSpec, TubeTokenizer, module_name

Heads = Mapping[str, list[str]]  # head -> names of its classes


class Taps(NamedTuple):
    """What an arm reads from the trunk: z0 and h, both (B, P+N, D), and the attention's bias where there is one."""

    z0: Tensor
    h: Tensor
    attn_mask: Tensor | None = None


def size_of(x: Tensor) -> Size:
    """(T, H, W) of images (B, 3, H, W), where T is 1, or videos (B, 3, T, H, W)."""
    return (1, *x.shape[2:]) if x.dim() == 4 else tuple(x.shape[2:])  # type: ignore[return-value]


class Tokenizer(nn.Module):
    """Images or videos to tokens with positions: the backbone's own patches, and tubes for videos."""

    def __init__(self, config: Mapping[str, Any], backbone: Backbone) -> None:
        super().__init__()
        self.stem: Any = backbone.stem
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.embed_dim, patch = backbone.embed_dim, backbone.patch_size
        frames, size = config["frames"], (config["input"]["frames"], *config["input"]["size"])
        self.frames = TubeSpec("frames", (1, *patch), (frames["stride"], *patch), (frames["offset"], 0, 0))
        self.image = TubeSpec("frames", (1, *patch), (1, *patch))
        specs = [TubeSpec.from_config(name, tube) for name, tube in config["tubes"].items()]
        self.tubes = TubeTokenizer(specs, self.embed_dim, config["interpolate"])
        self.kind, self.amplitude = config["positions"]["kind"], config["positions"]["amplitude"]
        self.positions: nn.Module | None = None
        if self.kind.startswith("cosine"):
            self.positions = Fixed(self.embed_dim, self.amplitude, stride=self.kind == "cosine")
        elif self.kind == "learned":
            self.positions = Learned([self.frames, *specs], size, self.embed_dim)
        elif self.kind == "relative":
            self.positions = Relative(backbone.num_heads)

    def specs(self, size: Size) -> list[TubeSpec]:
        """What reads an input of this size: an image (T = 1) takes the image tokenizer alone."""
        return [self.image] if size[0] == 1 else [self.frames, *self.tubes.specs]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) or (B, 3, H, W) -> z0 (B, P+N, D): prefix tokens, then frames, then tubes."""
        size = size_of(x)
        z0 = self.stem(x.reshape(len(x), 3, *size[1:])) if size[0] == 1 else self._video_tokens(x, size)
        positions = [table for spec in self.specs(size) if (table := self._table(spec, size)) is not None]
        if positions:
            prefix, tokens = z0.split((self.num_prefix_tokens, z0.shape[1] - self.num_prefix_tokens), dim=1)
            table = torch.cat([each.to(tokens) for each in positions])
            z0 = torch.cat([prefix, tokens + table], dim=1)
        return self.stem.norm_pre(z0)

    def restride(self, strides: Mapping[str, Sequence[int]]) -> None:
        """Give tubes, or ``frames``, another stride (t, h, w): smaller ones give more tokens (Table 7d).

        Raises:
            UserError: there is no such tube, or a stride is not three positive numbers.
        """
        names = ["frames", *self.tubes]
        for name, stride in strides.items():
            if name not in names:
                raise UserError(f"there is no tube {name!r}; allowed are {', '.join(names)}{nearest(name, names)}")
            if len(stride) != 3 or min(stride) < 1:
                raise UserError(f"the stride of {name!r} is {list(stride)}; allowed are three positive numbers t, h, w")
            if name == "frames":
                self.frames = replace(self.frames, stride=(stride[0], *self.frames.stride[1:]))
            else:
                self.tubes[name].spec = replace(self.tubes[name].spec, stride=tuple(stride))  # type: ignore[arg-type]

    def attn_mask(self, size: Size) -> Tensor | None:
        """Relative positions as a bias of the attention (1, heads, P+N, P+N); None for every other kind."""
        if not isinstance(self.positions, Relative):
            return None
        centres = torch.cat([spec.centres(size) for spec in self.specs(size)])
        return self.positions(centres.to(self.positions.tables), self.num_prefix_tokens)

    def _video_tokens(self, x: Tensor, size: Size) -> Tensor:
        count = self.frames.grid(size)[0]
        images = x[:, :, self.frames.offset[0] :: self.frames.stride[0]].transpose(1, 2)  # (B, nt, 3, H, W)
        tokens = self.stem(images.flatten(0, 1)).unflatten(0, (-1, count))  # (B, nt, P+Np, D)
        prefix, frames = tokens[:, 0, : self.num_prefix_tokens], tokens[:, :, self.num_prefix_tokens :].flatten(1, 2)
        tubes = [self.tubes(x)] if self.tubes.specs else []
        return torch.cat([prefix, frames, *tubes], dim=1)

    def _table(self, spec: TubeSpec, size: Size) -> Tensor | None:
        """What is added to the tokens of a tube or of the frames: (N, D), or None."""
        if isinstance(self.positions, Fixed | Learned):
            return self.positions(spec, size)
        if self.kind != "backbone" or size[0] == 1:
            return None  # an image keeps what the backbone itself adds
        table = self.amplitude * time_table(spec, size, self.embed_dim)
        if spec is self.frames:
            return table
        grid = self.stem.position_grid()
        space = sample_grid(grid, spec.centres(size)[:, 1:].to(grid), self.image.kernel[1:])
        return table.to(space) + space


class Trunk(nn.Module):
    """Tokenizer and frozen blocks: never trained, never in train mode, no autograd graph."""

    def __init__(self, tokenizer: Tokenizer, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.blocks = nn.ModuleList(blocks)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in eval mode, whatever is asked: drop path and dropout do not belong into a frozen trunk."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor, depths: Iterable[int]) -> dict[int, Taps]:
        """x (B, 3, T, H, W) or (B, 3, H, W) -> taps after each of ``depths`` blocks, in one pass."""
        wanted = set(depths)
        z0, mask = self.tokenizer(x), self.tokenizer.attn_mask(size_of(x))
        h, taps = z0, {}
        for depth, block in enumerate(self.blocks[: max(wanted)], start=1):
            h = block(h, attn_mask=mask)
            if depth in wanted:
                taps[depth] = Taps(z0, h, mask)
        return taps


class Gate(nn.Module):
    """Equation 8: h + tanh(alpha) z0, closed at first (alpha = 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor, z0: Tensor) -> Tensor:
        return h + self.alpha.tanh().to(z0.dtype) * z0


class Arm(nn.Module):
    """Everything above the trunk: gate, late blocks, norm and pool, heads; the tokenizer too where nothing is frozen.

    ``grad_checkpointing`` recomputes each block in the backward pass instead of keeping its activations.
    """

    grad_checkpointing = False

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        gate: bool,
        first: int,
        blocks: list[nn.Module],
        tail: Any,
        heads: Heads,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.gate = Gate() if gate else None
        self.blocks = nn.ModuleDict({str(first + index): block for index, block in enumerate(blocks)})
        self.tail = tail
        self.heads = nn.ModuleDict()
        for name, classes in heads.items():
            self.heads[module_name("a head", name)] = nn.Linear(tail.embed_dim, len(classes))

    def features(self, inputs: Tensor | Taps) -> Tensor:
        """Taps, or pixels where nothing is frozen, -> pooled features (B, D)."""
        if self.tokenizer is not None:
            assert isinstance(inputs, Tensor)
            z0 = self.tokenizer(inputs)
            inputs = Taps(z0, z0, self.tokenizer.attn_mask(size_of(inputs)))
        assert isinstance(inputs, Taps)
        h = self.gate(inputs.h, inputs.z0) if self.gate is not None else inputs.h
        for block in self.blocks.values():
            if self.grad_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, attn_mask=inputs.attn_mask, use_reentrant=False)
            else:
                h = block(h, attn_mask=inputs.attn_mask)
        return self.tail(h)

    def forward(self, inputs: Tensor | Taps, head: str) -> Tensor:
        """Logits of one head: (B, C)."""
        return self.heads[head](self.features(inputs))


class Preprocess:
    """What pixels must have been through: clips of ``frames`` frames at ``fps``, ``size`` (h, w), mean and std."""

    def __init__(self, frames: int, size: list[int], fps: float, mean: list[float], std: list[float]) -> None:
        self.frames, self.size, self.fps = frames, (size[0], size[1]), fps
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (B, 3, ...) -> normalised float32 of the same shape."""
        shape = (3,) + (1,) * (pixels.dim() - 2)
        scale = 1 / (255 * torch.tensor(self.std, device=pixels.device).view(shape))
        shift = -torch.tensor(self.mean, device=pixels.device).view(shape) * 255 * scale
        return pixels.float().mul_(scale).add_(shift)


class TubeViT(nn.Module):
    """An image ViT that understands videos. Frozen below block ``frozen_depth``; what trains is in ``arm``.

    Args:
        config: plain dict, the content of ``config.json``.
        tokenizer, blocks, tail: the parts; all blocks, frozen or not.
    """

    def __init__(self, config: dict[str, Any], tokenizer: Tokenizer, blocks: list[nn.Module], tail: nn.Module) -> None:
        super().__init__()
        depth, frozen = len(blocks), config["frozen_depth"]
        if not 0 <= frozen <= depth:
            raise UserError(f"frozen_depth {frozen} does not fit a model of {depth} blocks; allowed are 0 to {depth}")
        if config["gate"] and not frozen:
            raise UserError("a gate needs frozen blocks below it; with frozen_depth 0 set gate: false")
        self.config, self.depth, self.frozen_depth = config, depth, frozen
        self.base: dict[str, str] = {}  # sha256 of each tensor of the public backbone, where there is one
        self.report: dict[str, Any] = {}  # what was measured when the model was made
        self.preprocess = Preprocess(**config["input"])
        self.trunk = Trunk(tokenizer, blocks[:frozen]) if frozen else None
        own_tokenizer = None if frozen else tokenizer
        self.arm = Arm(own_tokenizer, config["gate"], frozen, blocks[frozen:], tail, config["heads"])

    @property
    def tokenizer(self) -> Tokenizer:
        return self.trunk.tokenizer if self.trunk is not None else self.arm.tokenizer  # type: ignore[return-value]

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, frozen ones first."""
        return [*(self.trunk.blocks if self.trunk is not None else ()), *self.arm.blocks.values()]

    def tokenize(self, x: Tensor) -> Tensor:
        """z0 (B, P+N, D) of normalised images (B, 3, H, W) or videos (B, 3, T, H, W); prefix tokens first."""
        return self.tokenizer(self._checked(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Pooled features (B, D)."""
        return self.arm.features(self.arm_inputs(self._checked(x)))

    def forward(self, x: Tensor, head: str | None = None) -> Tensor:
        """Logits (B, C) of a head, which may be left out where there is just one."""
        name = self._head(head)
        return self.arm.heads[name](self.forward_features(x))

    def arm_inputs(self, x: Tensor) -> Tensor | Taps:
        """What the arm is fed for x: the trunk's taps, or x itself where nothing is frozen."""
        return self.trunk(x, [self.frozen_depth])[self.frozen_depth] if self.trunk is not None else x

    def with_arm(self, frozen_depth: int, gate: bool, heads: Heads, seed: int = 0) -> TubeViT:
        """The same model frozen elsewhere, its trunk shared with this one (no copy), its arm an independent copy.

        Heads that this model has with the same classes are copied; others are drawn from (seed, name) alone, so that an
        arm begins alike in whichever company it trains. This model serves as the template and must not be trained.
        """
        config = copy.deepcopy(self.config) | {
            "frozen_depth": frozen_depth,
            "gate": gate,
            "heads": {name: list(classes) for name, classes in heads.items()},
        }
        blocks, tokenizer = self.blocks, self.tokenizer
        own = [*blocks[:frozen_depth], *copy.deepcopy(blocks[frozen_depth:])]
        made = TubeViT(
            config, tokenizer if frozen_depth else copy.deepcopy(tokenizer), own, copy.deepcopy(self.arm.tail)
        )
        made.base, made.report = self.base, dict(self.report)
        made.arm.requires_grad_(True)
        for name, head in made.arm.heads.items():
            if self.config["heads"].get(name) == config["heads"][name]:
                head.load_state_dict(self.arm.heads[name].state_dict())
            else:
                init_head(head, name, seed)
        if made.arm.gate is not None and self.arm.gate is not None:
            made.arm.gate.load_state_dict(self.arm.gate.state_dict())
        return made

    def save_pretrained(self, directory: str | Path, **options: Any) -> None:
        """Write a model directory; see :func:`scaleup.checkpoint.save`."""
        from scaleup.checkpoint import save  # checkpoint reads models, so it is imported by what it reads only here

        save(self, directory, **options)

    def _head(self, head: str | None) -> str:
        heads = list(self.arm.heads)
        if head is None and len(heads) == 1:
            return heads[0]
        if head not in heads:
            asked = "no head was named" if head is None else f"there is no head {head!r}"
            raise UserError(
                f"{asked}; this model has {', '.join(map(repr, heads)) or 'none'}{nearest(head or '', heads)}"
            )
        return head

    def _checked(self, x: Tensor) -> Tensor:
        height, width = self.preprocess.size
        if x.dim() not in (4, 5) or x.shape[1] != 3 or x.shape[-2:] != (height, width):
            allowed = f"(B, 3, T, {height}, {width}) and (B, 3, {height}, {width})"
            raise UserError(f"input of shape {tuple(x.shape)}; allowed are {allowed}")
        return x


def init_head(head: nn.Module, name: str, seed: int) -> None:
    """Fan-in initialisation of a classifier from (seed, name) alone, zero bias."""
    generator = torch.Generator().manual_seed(seed + sum(ord(c) * 257**i for i, c in enumerate(name)) % 2**31)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * head.in_features**-0.5)
        head.bias.zero_()


def describe(backbone: Backbone, seed: int, **parts: Any) -> dict[str, Any]:
    """The content of ``config.json``; ``parts`` are its keys input, frames, tubes, positions and so on."""
    entry = {key: getattr(backbone, key) for key in ("name", "kwargs", "weights", "license")}
    return {
        "format": FORMAT,
        "backbone": entry | {"seed": seed, "sha256": None},
        "interpolate": None,
        "frozen_depth": 0,
        "gate": False,
        "heads": {},
    } | parts


def fresh(recipe: Model, heads: Heads, seed: int) -> TubeViT:
    """The model that a recipe describes, everything that is not loaded drawn from ``seed``."""
    entry, positions = recipe.backbone, recipe.positions
    kwargs = dict(entry.kwargs) if positions.kind == "backbone" else {**entry.kwargs, "pos_embed": "none"}
    backbone = build(entry.name, kwargs, tuple(recipe.input.size), entry.weights, seed)  # type: ignore[arg-type]
    described = describe(
        backbone,
        seed,
        tubes={name: asdict(tube) for name, tube in recipe.tubes.items()},
        interpolate=recipe.interpolate,
        heads={name: list(classes) for name, classes in heads.items()},
        **{key: asdict(getattr(recipe, key)) for key in ("input", "frames", "positions")},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return assemble(described, backbone, seed)


def assemble(config: dict[str, Any], backbone: Backbone, seed: int = 0) -> TubeViT:
    """A model of ``config`` on a backbone; tubes and heads are fresh."""
    model = TubeViT(config, Tokenizer(config, backbone), backbone.blocks, backbone.tail)
    for name, head in model.arm.heads.items():
        init_head(head, name, seed)
    return model
