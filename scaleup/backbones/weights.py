"""Loads a weights file into a model. Tensors are renamed, checked, and copied one by one, so that none is in memory
twice.

Weights in the layouts of transformers (ViT, DeiT, MAE, CLIP, SigLIP, DINOv2, DINOv3) get timm's names. The layout is
recognised by the names of tensors. Unknown names stay, and are refused when the tensors are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scaleup.common.errors import UserError, first_line
from scaleup.common.tensors import File

TOWERS = ("vision_model", "vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "ijepa", "model.vision_model")
TOWER = re.compile(rf"(?P<tower>(?:(?:{'|'.join(map(re.escape, TOWERS))})[.])?)embeddings[.]patch_embeddings?[.]")
RENAMED = [  # (pattern, replacement) for names of the vision tower; all that match are applied, in this order
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^(encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.(attention\.attention|attention|self_attn)\.(query|q_proj)\.", ".attn.q."),
    (r"\.(attention\.attention|attention|self_attn)\.(key|k_proj)\.", ".attn.k."),
    (r"\.(attention\.attention|attention|self_attn)\.(value|v_proj)\.", ".attn.v."),
    (r"^(blocks\.\d+)\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.(intermediate\.dense|mlp\.weights_in)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.(output\.dense|mlp\.weights_out|mlp\.down_proj)\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.(layernorm_before|layer_norm1)\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.(layernorm_after|layer_norm2)\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.attention\.in_proj_(weight|bias)$", r"attn_pool.qkv.\1"),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
]
OPEN_CLIP = [  # from timm's names to those of open_clip's own towers
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def convert(tensors: dict[str, Tensor], own: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the vision tower under timm's names, and all others. Tensors of unknown layouts keep their names.

    Args:
        own: the names of the model's tensors.
    """
    match = next((found for name in tensors if (found := TOWER.match(name))), None)
    if match is None:
        return tensors, {}
    tower = match["tower"]
    inside = {_renamed(name[len(tower) :], RENAMED): t for name, t in tensors.items() if name.startswith(tower)}
    outside = {name: tensor for name, tensor in tensors.items() if not name.startswith(tower)}
    outside |= {name: inside.pop(name) for name in ("mask_token", "embeddings.position_ids") if name in inside}
    _reshape_embeddings(inside)
    _join_gates(inside, own)
    for before in sorted({name.rpartition(".attn.")[0] for name in inside if ".attn.q." in name}):
        outside |= _join_attention(inside, before, own)
    _split_pool(inside)
    if "blocks.0.gamma_1" in own:
        inside = {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name): tensor for name, tensor in inside.items()}
    return inside, outside


def convert_for_open_clip(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As :func:`convert`, under the names of open_clip's own towers."""
    inside, outside = convert(tensors, ())
    if inside is tensors:
        return tensors, {}
    for name in {"cls_token", "pos_embed"} & inside.keys():
        inside[name] = inside[name].squeeze()
    return {_renamed(name, OPEN_CLIP): tensor for name, tensor in inside.items()}, outside


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def _reshape_embeddings(inside: dict[str, Tensor]) -> None:
    """Reshape class token (1, 1, D) and positions (1, N, D). If there are registers, the class token gets its
    position."""
    for name in {"cls_token", "pos_embed"} & inside.keys():
        inside[name] = inside[name].reshape(1, -1, inside[name].shape[-1])
    if {"reg_token", "cls_token", "pos_embed"} <= inside.keys():
        first, inside["pos_embed"] = inside["pos_embed"].split([1, inside["pos_embed"].shape[1] - 1], dim=1)
        inside["cls_token"] = inside["cls_token"] + first


def _join_gates(inside: dict[str, Tensor], own: Collection[str]) -> None:
    """Join the two halves of a SwiGLU's first layer, gate first, if the model has them as one tensor."""
    for name in [name for name in inside if ".mlp.up_proj." in name]:
        up, gate = inside.pop(name), inside.pop(name.replace("up_proj", "gate_proj"), None)
        if gate is None:
            inside[name.replace("up_proj", "fc1")] = up
        elif (apart := name.replace("up_proj", "fc1_x")) in own:
            inside |= {apart: up, name.replace("up_proj", "fc1_g"): gate}
        else:
            inside[name.replace("up_proj", "fc1")] = torch.cat([gate, up])


def _join_attention(inside: dict[str, Tensor], block: str, own: Collection[str]) -> dict[str, Tensor]:
    """Join queries, keys and values of a block into one tensor; return zero biases that the model does not have."""
    kinds = [f"{block}.attn.{kind}" for kind in "qkv"]
    if all(f"{kind}.weight" in inside for kind in kinds):
        inside[f"{block}.attn.qkv.weight"] = torch.cat([inside.pop(f"{kind}.weight") for kind in kinds])
    biases = {kind: f"{kind}.bias" for kind in kinds if f"{kind}.bias" in inside}
    if len(biases) == 3:
        inside[f"{block}.attn.qkv.bias"] = torch.cat([inside.pop(name) for name in biases.values()])
        return {}
    zeros = {}
    for kind, name in biases.items():  # DINOv3 has none of the keys
        tensor = inside.pop(name)
        if f"{kind}_bias" in own or tensor.is_meta or tensor.any():
            inside[f"{kind}_bias"] = tensor
        else:
            zeros[name] = tensor
    return zeros


def _split_pool(inside: dict[str, Tensor]) -> None:
    """Split the queries of an attention pool from its keys and values."""
    for kind in ("weight", "bias"):
        if (joined := inside.pop(f"attn_pool.qkv.{kind}", None)) is not None:
            query, rest = joined.split([len(joined) // 3, len(joined) - len(joined) // 3])
            inside |= {f"attn_pool.q.{kind}": query, f"attn_pool.kv.{kind}": rest}


IN_PLACE = ("normal_", "uniform_", "fill_", "zero_", "mul_", "div_", "add_", "clamp_", "erfinv_")
INITIALIZERS = ("normal_", "uniform_", "constant_", "kaiming_uniform_")


class SkipInit(TorchFunctionMode):
    """Make in-place initialisation skip tensors on the meta device."""

    DRAWS = frozenset(
        [getattr(torch.Tensor, name) for name in IN_PLACE] + [getattr(torch.nn.init, name) for name in INITIALIZERS]
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = (args[0] if args else kwargs["tensor"]) if func in self.DRAWS else None
        return drawn if drawn is not None and drawn.is_meta else func(*args, **kwargs)


OWN = ("tubes.", "positions.", "heads.", "gate.")  # tensors of scaleup's models that are not the backbone's
SHOWN = 3  # differences of each kind that an error lists

Arrange = Callable[[Any, dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]


class Loaded(NamedTuple):
    """The result of :func:`load`. ``left``: tensors that the model does not use; ``origin``: tensors of the model that
    are unchanged from the file, except for their type, and their names there."""

    left: dict[str, Tensor]
    origin: dict[str, str]


def load(model: Any, file: File, arrange: Arrange, stay: tuple[str, ...] = ()) -> Loaded:
    """Load the tensors of a file into a model (on the meta device), in float32.

    Args:
        arrange: (model, tensors of the file) -> tensors under the model's names, in its layout and sizes, and tensors
            that it does not use. Tensors are mapped, so those that are not used are not read.
        stay: beginnings of names of tensors that stay in the file and are not loaded.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    own_kind = {name: tensor for name, tensor in file.mapped.items() if name.startswith(OWN)}
    try:
        arranged, outside = arrange(model, {name: t for name, t in file.mapped.items() if name not in own_kind})
    except UserError:
        raise
    except Exception as error:  # libraries raise many kinds of errors for unexpected names and shapes
        raise UserError(f"{file.path} does not have the weights of this model ({first_line(error)})") from error
    _refuse_misfits(model.state_dict(), arranged, file.path)
    places = {_place(tensor): name for name, tensor in file.mapped.items()}
    as_is = {name: places[_place(tensor)] for name, tensor in arranged.items() if _place(tensor) in places}
    moved = [name for name in as_is if not (stay and name.startswith(stay))]
    copies = file.copies([as_is[name] for name in moved], torch.float32)
    state = dict(zip(moved, copies, strict=True))
    for name in arranged.keys() - as_is.keys():
        state[name] = arranged.pop(name).to(torch.float32, copy=True)
    model.load_state_dict(state, strict=False, assign=True)  # differences were refused above
    origin = {name: file.names[as_is[name]] for name in as_is}
    return Loaded({name: tensor.clone() for name, tensor in (own_kind | outside).items()}, origin)


def _place(tensor: Tensor) -> tuple:
    """The position of a tensor in a mapped file."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _refuse_misfits(own: Mapping[str, Tensor], arranged: Mapping[str, Tensor], path: Path) -> None:
    kinds = {
        "it lacks": [name for name in own if name not in arranged],
        "it has besides": [name for name in arranged if name not in own],
        "it differs in": [
            f"{name} {tuple(arranged[name].shape)} where {tuple(tensor.shape)} belongs"
            for name, tensor in own.items()
            if name in arranged and tensor.shape != arranged[name].shape
        ],
    }
    if any(kinds.values()):
        faults = "; ".join(f"{words} {_first(names)}" for words, names in kinds.items() if names)
        raise UserError(f"{path} does not have the weights of this model: {faults}")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
