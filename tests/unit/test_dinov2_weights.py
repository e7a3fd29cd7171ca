"""The weights that tools/real reads from an ONNX file of DINOv2."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from real.dinov2_weights import HEADS, LAYERS, PATCHES, read_weights
from scaleup.common.errors import UserError

onnx = pytest.importorskip("onnx")


def small() -> nn.Module:
    size = {"img_size": 28, "embed_dim": 12, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_small_patch14_dinov2", **size).eval()
    for value in model.parameters():
        nn.init.normal_(value, std=0.3)
    return model


def write(path: Path, model: nn.Module, without: str = "") -> None:
    """The file that transformers' exporter writes of this model, without one of its constants."""
    state, tensors, products = model.state_dict(), dict[str, Tensor](), dict[str, Tensor]()
    tensors["backbone.embeddings.cls_token"] = state["cls_token"]
    tensors["positions_0"], tensors["positions_1"] = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    for part in ("weight", "bias"):
        tensors[f"{PATCHES}.{part}"] = state[f"patch_embed.proj.{part}"]
        tensors[f"backbone.layernorm.{part}"] = state[f"norm.{part}"]
    for block in range(2):
        ours, name = f"blocks.{block}.", f"backbone.encoder.layer.{block}."
        layers = {layer: (state[f"{ours}{key}.weight"], state[f"{ours}{key}.bias"]) for key, layer in LAYERS.items()}
        qkv = zip(state[f"{ours}attn.qkv.weight"].chunk(3), state[f"{ours}attn.qkv.bias"].chunk(3), strict=True)
        for layer, (weight, bias) in (layers | dict(zip(HEADS, qkv, strict=True))).items():
            products[f"/backbone/encoder/layer.{block}/{layer}/MatMul"] = weight.T.contiguous()
            tensors[f"{name}{layer.replace('/', '.')}.bias"] = bias
        for index in (1, 2):
            tensors[f"{name}layer_scale{index}.lambda1"] = state[f"{ours}ls{index}.gamma"]
            for part in ("weight", "bias"):
                tensors[f"{name}norm{index}.{part}"] = state[f"{ours}norm{index}.{part}"]
    nodes = [onnx.helper.make_node("MatMul", ["x", f"w{name}"], [name], name=name) for name in products]
    tensors |= {f"w{name}": value for name, value in products.items()}
    constants = [onnx.numpy_helper.from_array(v.numpy(), n) for n, v in tensors.items() if n != without]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], constants)), path)


def test_the_weights_give_the_features_of_the_model_they_came_from(tmp_path: Path) -> None:
    model, copy = small(), small()
    write(tmp_path / "a.onnx", model)
    copy.load_state_dict(read_weights(tmp_path / "a.onnx", copy))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(copy(pixels), model(pixels))


@pytest.mark.parametrize("name", ["backbone.layernorm.bias", "positions_1", "backbone.encoder.layer.1.norm2.weight"])
def test_a_file_without_a_tensor_is_refused(tmp_path: Path, name: str) -> None:
    model = small()
    write(tmp_path / "a.onnx", model, without=name)
    with pytest.raises(UserError, match="no DINOv2 of 2 blocks"):
        read_weights(tmp_path / "a.onnx", model)
