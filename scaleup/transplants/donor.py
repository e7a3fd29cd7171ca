"""The small model of a transplant: the kernels of its tubes, and how its input was normalised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from scaleup.checkpoint.model_directory import FULL, ModelConfig, read_config, read_report, trained_on, without_part
from scaleup.common import tensors
from scaleup.common.errors import UserError, nearest
from scaleup.common.files import make_readable, write_json, write_text
from scaleup.common.model_choice import report_choice
from scaleup.config.recipe import OWN
from scaleup.config.schema import Frames, Input, Model
from scaleup.model.tubes import TubeSpec, resize_kernel

# The public Lightning reimplementation has the paper's main tubes. They share one 8x8x8 kernel.
LIGHTNING = "sparse_tubes_tokenizer.conv_proj_weight", "sparse_tubes_tokenizer.conv_proj_bias"
LIGHTNING_TUBES = (
    TubeSpec("tube8x8x8", (8, 8, 8), (16, 32, 32)),
    TubeSpec("tube16x4x4", (16, 4, 4), (6, 32, 32), (4, 8, 8)),
    TubeSpec("tube4x12x12", (4, 12, 12), (16, 32, 32), (0, 16, 16)),
)
PATCHES = ("patch_embed.proj", "conv1")  # names of a patch embedding in timm and in open_clip
LIGHTNING_CONFIG = Model(input=Input(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]), frames=Frames(32))


@dataclass
class Kernel:
    """A tube of the small model: weight (c, 3, t, h, w), bias (c,)."""

    spec: TubeSpec
    weight: Tensor
    bias: Tensor
    parents: tuple[str, ...]  # names of its tensors in the file


@dataclass
class Donor:
    """What a transplant takes from the small model. ``patch`` is the kernel of its image tokens, or None."""

    name: str
    kernels: list[Kernel]
    patch: Kernel | None
    config: ModelConfig | Model  # its input, frames, tubes and positions are read
    tensors: dict[str, Tensor]
    sha256: str
    data: list[Mapping[str, Any]]  # what it was trained on, if that is known


def read(path: str | Path) -> Donor:
    """Read a small model: one of our directories, its ``.safetensors``, a checkpoint with our names, a public one, or
    tubes that come with scaleup (``donors/NAME``).

    Raises:
        UserError: the file is no checkpoint, holds no tubes, or does not say where its tubes are applied.
    """
    path = _located(Path(path))
    file = path / FULL if path.is_dir() else path
    config: ModelConfig | Model | None = read_config(path) if path.is_dir() else None
    if path.is_dir() and not file.exists():
        raise UserError(f"{path} holds a delta, and tubes are moved from a whole small model; export it with --to full")
    checkpoint = tensors.File(file)
    names = checkpoint.mapped
    report_choice(checkpoint.path, checkpoint.said)
    own = {without_part(name): tensor for name, tensor in zip(names, checkpoint.copies(names), strict=True)}
    if LIGHTNING[0] in own:
        config, (kernels, patch) = LIGHTNING_CONFIG, _lightning(own)
    else:
        config = config or _config_beside(checkpoint.path, checkpoint.beside)
        kernels, patch = _kernels(config, own, file), _patch(own)
    for kernel in kernels:
        if not (kernel.weight.isfinite().all() and kernel.bias.isfinite().all()):
            raise UserError(f"{file}: the kernel of the tube {kernel.spec.name!r} is not finite; training diverged")
    data = [shards for shards, _ in trained_on(read_report(path))] if path.is_dir() else []
    return Donor(str(path), kernels, patch, config, own, tensors.fingerprint(tensors.hashes(own)), data)


def _located(path: Path) -> Path:
    """The path; if nothing is there and it is called ``donors/NAME``, scaleup's own donor of this name."""
    if path.exists() or path.parts[:1] != ("donors",):
        return path
    own = {f"donors/{place.name}": place for place in sorted((OWN / "donors").glob("*"))}
    if str(path) not in own:
        allowed = f"allowed are the path of a small model and {', '.join(own)}{nearest(str(path), own)}"
        raise UserError(f"there is no donor {str(path)!r}; {allowed}")
    return own[str(path)]


def write(donor: Donor, out: Path) -> dict[str, float]:
    """Write what a transplant takes from a small model that was read from a directory: its tubes and patches, in
    float16.

    Returns:
        By tube, how far the written kernel is from the small model's: the largest difference over the largest weight.
    """
    names = {name for kernel in donor.kernels for name in kernel.parents}
    names |= {f"{name}.{part}" for name in PATCHES for part in ("weight", "bias")} & donor.tensors.keys()
    save_file({name: donor.tensors[name].half().contiguous() for name in sorted(names)}, out / FULL)
    make_readable(out / FULL)  # safetensors writes for the owner alone
    shutil.copy(Path(donor.name) / "config.json", out)
    if donor.data:
        write_json(out / "report.json", {"data": {each["shards"]: each for each in donor.data}})
    written = read(out)
    write_text(out / "README.md", _card(written))
    return {
        own.spec.name: float((own.weight - copy.weight).abs().max() / own.weight.abs().max())
        for own, copy in zip(donor.kernels, written.kernels, strict=True)
    }


def _card(donor: Donor) -> str:
    tubes = [f"`{each.spec.name}` {'x'.join(map(str, each.spec.kernel))}" for each in donor.kernels]
    seen = [f"{each['shards']} ({each['samples']:,} {each['modality']}s)" for each in donor.data]
    return (
        f"The tubes of a small model of width {len(donor.kernels[0].bias)}, in float16: {', '.join(tubes)}.\n\n"
        f"- trained on: {', '.join(seen) or 'not known'}\n"
        f"- sha256 of the tensors: `{donor.sha256}`\n\n"
        "It has no blocks and no heads. `tools/transplant.py THIS VIT --out DIR` moves them into a large image ViT.\n"
    )


def _config_beside(file: Path, beside: Mapping[str, Any]) -> ModelConfig:
    """The config of a checkpoint file: from its metadata, or from the config.json in its directory."""
    config = beside.get("config")
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as error:
            raise UserError(f"{file} carries a config that is not JSON ({error})") from error
    if config is not None:
        return ModelConfig.from_json(config, f"the config in {file}")
    if (file.parent / "config.json").is_file():
        return read_config(file.parent)
    raise UserError(f"{file} does not say where its tubes are applied; put the small model's config.json beside it")


def _kernels(config: ModelConfig | Model, own: Mapping[str, Tensor], file: Path) -> list[Kernel]:
    if not config.tubes:
        raise UserError(f"{file} is a model without tubes; there is nothing to transplant")
    specs = [TubeSpec.from_config(name, tube) for name, tube in config.tubes.items()]
    return [_kernel(spec, own, file) for spec in specs]


def _kernel(spec: TubeSpec, own: Mapping[str, Tensor], file: Path) -> Kernel:
    weight, shared, bias = f"tubes.{spec.name}.weight", "tubes.shared", f"tubes.{spec.name}.bias"
    weight = weight if weight in own else shared
    if missing := [name for name in (weight, bias) if name not in own]:
        raise UserError(f"{file} lacks {', '.join(missing)} of the tube {spec.name!r}")
    kernel = own[weight] if weight != shared else resize_kernel(own[shared], spec.kernel)
    if kernel.dim() != 5 or tuple(kernel.shape[1:]) != (3, *spec.kernel) or own[bias].shape != kernel.shape[:1]:
        raise UserError(
            f"{file}: {weight} is {tuple(kernel.shape)} with a bias {tuple(own[bias].shape)}, where (channels, 3, "
            f"{', '.join(map(str, spec.kernel))}) and (channels,) belong"
        )
    return Kernel(spec, kernel.float(), own[bias].float(), (weight, bias))


def _patch(own: Mapping[str, Tensor]) -> Kernel | None:
    """The patch embedding as a tube of one frame, or None if it is more than one convolution."""
    name = next((name for name in PATCHES if f"{name}.weight" in own), None)
    if name is None or own[f"{name}.weight"].dim() != 4 or "patch_embed.norm.weight" in own:
        return None
    weight = own[f"{name}.weight"].float()[:, :, None]  # (d, 3, 1, h, w)
    bias = own.get(f"{name}.bias", torch.zeros(len(weight))).float()
    return _of_one_frame(weight, bias)


def _of_one_frame(weight: Tensor, bias: Tensor) -> Kernel:
    size = (1, weight.shape[3], weight.shape[4])
    return Kernel(TubeSpec("patch", size, size), weight, bias, ())


def _lightning(own: Mapping[str, Tensor]) -> tuple[list[Kernel], Kernel | None]:
    """The three tubes, and the patches, which have the fourth bias.

    That model resizes its kernel by plain interpolation, without our correction of the gain.
    """
    weight, biases = (own.get(name, torch.zeros(0)).float() for name in LIGHTNING)
    if weight.shape[1:] != (3, 8, 8, 8) or biases.shape != (len(LIGHTNING_TUBES) + 1, len(weight)):
        raise UserError(
            f"{LIGHTNING[0]} {tuple(weight.shape)} and {LIGHTNING[1]} {tuple(biases.shape)} are not one kernel "
            f"(D, 3, 8, 8, 8) and four biases (4, D)"
        )
    sizes = [*(spec.kernel for spec in LIGHTNING_TUBES), (1, 16, 16)]
    *resized, patch = (
        weight if size == weight.shape[2:] else F.interpolate(weight, size, mode="trilinear") for size in sizes
    )
    parts = zip(LIGHTNING_TUBES, resized, biases[:-1], strict=True)
    return [Kernel(spec, kernel, bias, LIGHTNING) for spec, kernel, bias in parts], _of_one_frame(patch, biases[-1])
