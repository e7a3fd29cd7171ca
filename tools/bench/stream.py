"""A backbone larger than memory: the real tools adapt it and train one step, and read its weights from disk."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from bench.measure import GIB, Figures, alternate, compare, goal, machine, measured, run_python, timed
from bench.transplant import TOOL, small_model
from scaleup.backbones.build import build
from scaleup.data.shapes import make_shapes
from scaleup.model.build import load
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.trunk import Trunk, cast, cast_trunks, load_block

CHUNK = 1 << 22  # number of random values, which are written again and again


def stream(
    directory: str,
    backbone: str = "timm:vit_7b_patch16_dinov3",
    trained: int = 1,
    precision: str = "bfloat16",
    repeats: int = 3,
) -> Figures:
    """Peak memory of the transplant and of one training step, and how much slower the trunk is from disk.

    Args:
        directory: the weights (bfloat16) and the runs are written here; existing ones are used again.
        trained: number of late blocks that train; all others stay on disk.
    """
    before, at = machine(), Path(directory)
    at.mkdir(parents=True, exist_ok=True)
    file, depth = at / "weights.safetensors", build(backbone, {}, None, "meta").depth
    if not file.exists():
        write_random(build(backbone, {}, None, "meta").state_dict(), file)
    small = at / "small" if (at / "small").exists() else small_model(at / "small")
    options = ["--weights", file, "--gate-at", depth - trained, "--placement", "disk", "--out", at / "adapted"]
    transplanted = run_python(TOOL, small, backbone, *options, "--overwrite")
    recipe = one_step(at, depth - trained, precision, "disk")
    trained_step = run_python(TOOL.with_name("train.py"), recipe, "--overwrite")
    row = {
        "backbone": backbone,
        "weight_bytes": file.stat().st_size,
        "frozen_depth": depth - trained,
        "transplant_seconds": transplanted.seconds,
        "transplant_peak_bytes": transplanted.peak_bytes,
        "step_seconds": trained_step.seconds,
        "step_peak_bytes": trained_step.peak_bytes,
        "trunk": _compare_trunks(at / "adapted", precision, repeats),
    }
    goals = [goal("peak memory of a step in GiB", trained_step.peak_bytes / GIB, 16.0)]
    return measured(before, [row], goals)


def write_random(shapes: Mapping[str, Tensor], path: Path) -> None:
    """Write a bfloat16 safetensors file of tensors of these shapes, piece by piece: random weights, norms 1, biases
    0."""
    random = torch.empty(CHUNK).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    chunk = random.bfloat16().view(torch.int16).numpy()
    header, start = {}, 0
    for name, tensor in shapes.items():
        end = start + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    half = path.with_suffix(".tmp")
    with half.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in shapes.items():
            for part in _parts(name, tensor.shape, chunk):
                out.write(part.tobytes())
    half.replace(path)


def _parts(name: str, shape: torch.Size, chunk: np.ndarray) -> list[np.ndarray]:
    count = prod(shape)
    if len(shape) > 1:
        chunks, rest = divmod(count, len(chunk))
        return [chunk] * chunks + [chunk[:rest]]
    value = 0.0 if name.endswith("bias") else 1.0
    return [torch.full((count,), value, dtype=torch.bfloat16).view(torch.int16).numpy()]


def one_step(at: Path, frozen_depth: int, precision: str = "float32", placement: str = "device") -> Path:
    """Write a recipe that trains the gated model ``at / "adapted"`` for one step, and its data, two clips of
    32x224x224."""
    if not (at / "shapes").exists():
        make_shapes(at / "shapes", {"train": 2}, {}, size=224, frames=32)
    content = {
        "out": str(at / "run"),
        "model": {"load": str(at / "adapted")},
        "data": {
            "batch": 2,
            "workers": 0,
            "train": {"videos": {"shards": str(at / "shapes/videos-train"), "heads": {"motion": "motion"}}},
        },
        "trunk": {"precision": precision, "placement": placement},
        "train": {"steps": 1, "warmup": 0},
        "arm": {"frozen_depth": frozen_depth, "gate": True, "lr": 1e-5, "gate_lr": 5e-5},
    }
    path = at / "recipe.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


@torch.inference_mode()
def _compare_trunks(adapted: Path, precision: str, repeats: int) -> Figures:
    """A pass of the trunk over one clip, from disk and from memory in turns, and whether both give the same output.

    Before each pass from disk the system is asked to drop the file from its page cache.
    """
    streamed = load(adapted, placement="disk")
    trunk, depth = streamed.trunk, streamed.frozen_depth
    assert trunk is not None
    cast_trunks([trunk], precision, set())
    blocks = [cast(load_block(trunk.blocks, index, trunk.file), precision) for index in range(depth)]
    resident = Trunk(trunk.tokenizer, blocks)
    resident.precision = precision
    clip = normalise(natural_clip(streamed.preprocess.frames, streamed.preprocess.size), streamed.config.input)
    same = torch.equal(trunk(clip, [depth])[depth].h, resident(clip, [depth])[depth].h)
    assert trunk.file is not None
    path = trunk.file.path
    seconds = alternate(
        _cold(path, timed(lambda: trunk(clip, [depth]))), timed(lambda: resident(clip, [depth])), repeats
    )
    return {"precision": precision, "bit_for_bit": same, **compare(seconds)}


def _cold(path: str, work: Callable[[], float]) -> Callable[[], float]:
    """A function that drops the file from the system's page cache, and then calls ``work``."""

    def seconds() -> float:
        with open(path, "rb") as file:  # noqa: PTH123 - a descriptor is wanted
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return work()

    return seconds
