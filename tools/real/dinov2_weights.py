"""The weights of a DINOv2 ViT, read from an ONNX file that was exported from transformers, in timm's layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from scaleup.common.errors import UserError

LAYERS = {"attn.proj": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}
HEADS = [f"attention/attention/{name}" for name in ("query", "key", "value")]
PATCHES = "backbone.embeddings.patch_embeddings.projection"


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The parameters of ``model``, a timm DINOv2 ViT (read for names and shapes), from the file's ``backbone``.

    Raises:
        UserError: onnx is not installed, a tensor is missing, or one has another shape than the model's.
    """
    tensors, matrices = _read_tensors(path)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    try:
        weights = _embeddings(tensors, shapes["pos_embed"])
        for block in range(depth):
            weights |= _block(tensors, matrices, block)
    except KeyError as error:
        raise UserError(f"{path} is no DINOv2 of {depth} blocks: it has no {error}") from error
    for name in sorted(shapes.keys() | weights.keys()):
        shape = tuple(weights[name].shape) if name in weights else None
        if shape != shapes.get(name):
            raise UserError(f"{path}: {name} has shape {shape}, the model's has {shapes.get(name)}")
    return weights


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All constants by name, and the matrices of products by their node's name, as (out, in)."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise UserError("reading ONNX needs the package 'onnx': pip install 'scaleup[onnx]'") from error
    graph = onnx.load(path).graph
    tensors = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in tensors]
    return tensors, {node.name: tensors[node.input[1]].T.contiguous() for node in products}


def _embeddings(tensors: dict[str, Tensor], positions: tuple[int, ...]) -> dict[str, Tensor]:
    """What comes before and after the blocks. The exporter splits the positions into two unnamed constants."""
    cls = "backbone.embeddings.cls_token"
    first, rest = (1, 1, positions[2]), (1, positions[1] - 1, positions[2])
    by_shape = {tuple(value.shape): value for name, value in tensors.items() if name != cls}
    norm = {f"norm.{part}": tensors[f"backbone.layernorm.{part}"] for part in ("weight", "bias")}
    patches = {f"patch_embed.proj.{part}": tensors[f"{PATCHES}.{part}"] for part in ("weight", "bias")}
    return norm | patches | {"cls_token": tensors[cls], "pos_embed": torch.cat([by_shape[first], by_shape[rest]], 1)}


def _block(tensors: dict[str, Tensor], matrices: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    """One block: products are named by their node, everything else by the constant."""
    node, name = f"/backbone/encoder/layer.{block}/", f"backbone.encoder.layer.{block}."

    def bias(layer: str) -> Tensor:
        return tensors[f"{name}{layer.replace('/', '.')}.bias"]

    weights = {
        "attn.qkv.weight": torch.cat([matrices[f"{node}{head}/MatMul"] for head in HEADS]),
        "attn.qkv.bias": torch.cat([bias(head) for head in HEADS]),
        "ls1.gamma": tensors[f"{name}layer_scale1.lambda1"],
        "ls2.gamma": tensors[f"{name}layer_scale2.lambda1"],
    }
    for ours, layer in LAYERS.items():
        weights |= {f"{ours}.weight": matrices[f"{node}{layer}/MatMul"], f"{ours}.bias": bias(layer)}
    for norm in ("norm1", "norm2"):
        weights |= {f"{norm}.{part}": tensors[f"{name}{norm}.{part}"] for part in ("weight", "bias")}
    return {f"blocks.{block}.{ours}": value for ours, value in weights.items()}
