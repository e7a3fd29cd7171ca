"""Adapters on late blocks (LoRA, DoRA, (IA)^3) of peft, in its format. The blocks' own weights stay frozen.

LoRA: Hu et al., 2021; DoRA: Liu et al., 2024; (IA)^3: Liu et al., 2022. A new adapter does not change the output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scaleup.checkpoint.model_directory import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from scaleup.common.errors import UserError
from scaleup.common.files import make_readable
from scaleup.model.arm import generator_of

KINDS: tuple[str, ...] = get_args(get_type_hints(Adapter)["kind"])


class Adapt(NamedTuple):
    """How late blocks train: ``full``, ``none``, or an adapter of KINDS. ``rank`` and ``alpha`` are for LoRA and
    DoRA."""

    kind: str = "full"
    rank: int = 8
    alpha: float = 16.0

    @property
    def adapter(self) -> Adapter | None:
        """The entry in ``config.json``."""
        return Adapter(*self) if self.kind in KINDS else None  # type: ignore[arg-type]


FULL = Adapt()


class Targets(NamedTuple):
    """Linear layers in the blocks of a family, by the last part of their names. Only layers that are called as
    modules."""

    lora: tuple[str, ...]  # LoRA and DoRA: all of attention and MLP
    scaled: tuple[str, ...]  # (IA)^3 scales the output of these: keys and values (and queries, if they are joined)
    fed: tuple[str, ...]  # (IA)^3 scales the input of these: the hidden layer of the MLP


_SEPARATE = Targets(
    ("qkv", "q_proj", "k_proj", "v_proj", "proj", "fc1", "fc1_g", "fc1_x", "fc2"), ("qkv", "k_proj", "v_proj"), ("fc2",)
)
_FUSED = Targets(("in_proj", "out_proj", "attn_out_proj", "mlp_out_proj"), ("in_proj",), ("out_proj", "mlp_out_proj"))
TARGETS = {  # class of a block -> its targets
    "Block": _SEPARATE,
    "ParallelThingsBlock": _SEPARATE,
    "EvaBlock": _SEPARATE,
    "ParallelScalingBlock": _FUSED,
    "DiffParallelScalingBlock": _FUSED,
    # Only the MLP: torch's own attention reads the weights of its layers, and does not call them.
    "ResidualAttentionBlock": Targets(("c_fc", "c_proj"), (), ("c_proj",)),
    "CustomResidualAttentionBlock": Targets(("out_proj", "c_fc", "c_proj"), (), ("c_proj",)),
}


def inject(blocks: nn.ModuleDict, adapter: Adapter, seed: int) -> None:
    """Put new adapters on blocks, and freeze the blocks' own weights. Random values depend only on seed and name.

    Raises:
        UserError: there are no blocks, or they are of a class without targets.
    """
    from peft import inject_adapter_in_model  # seconds to import

    names = _targets(blocks, adapter.kind)
    inject_adapter_in_model(_peft_config(adapter, *names), blocks)
    assert sorted(adapted_layers(blocks)) == sorted(set(names[0]))
    for name, parameter in blocks.named_parameters():
        if ".lora_A." in name:  # initialised as by peft; lora_B is 0
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator_of(f"blocks.{name}", seed))


def _targets(blocks: nn.ModuleDict, kind: str) -> tuple[list[str], list[str]]:
    """Names of the layers that get an adapter, and of those whose input it scales."""
    if not blocks:
        raise UserError(f"there is no block above the trunk for a {kind} adapter; choose a smaller frozen_depth")
    targets, fed = [], []
    for index, block in blocks.items():
        if (layers := TARGETS.get(type(block).__name__)) is None:
            allowed = f"adapters fit {', '.join(TARGETS)}"
            raise UserError(f"a {kind} adapter does not fit blocks of class {type(block).__name__}; {allowed}")
        names = layers.scaled + layers.fed if kind == "ia3" else layers.lora
        for name, layer in block.named_modules():
            last = name.rpartition(".")[2]
            if isinstance(layer, nn.Linear) and last in names and _is_called(block, name):
                targets.append(f"{index}.{name}")
                fed += [f"{index}.{name}"] if last in layers.fed else []
    return targets, fed


def _is_called(block: nn.Module, name: str) -> bool:
    """Whether a layer is called as a module. (With biases for qkv, EVA reads the weight and does not call the
    layer.)"""
    attention = block.get_submodule(name.rpartition(".")[0])
    added = getattr(attention, "q_bias", None) is not None and not attention.qkv_bias_separate
    return not (added and name.endswith("qkv"))


def _peft_config(adapter: Adapter, targets: list[str], fed: list[str]) -> Any:
    from peft import IA3Config, LoraConfig

    if adapter.kind == "ia3":
        return IA3Config(target_modules=targets, feedforward_modules=fed)
    alpha: Any = adapter.alpha  # peft accepts fractions too
    return LoraConfig(r=adapter.rank, lora_alpha=alpha, target_modules=targets, use_dora=adapter.kind == "dora")


def adapted_layers(blocks: nn.Module) -> dict[str, Any]:
    """The layers of blocks that have an adapter, by name."""
    return {name: module for name, module in blocks.named_modules() if hasattr(module, "get_base_layer")}


@torch.no_grad()
def merge(blocks: nn.ModuleDict) -> None:
    """Merge adapters into the weights of their layers, which must not be shared with another model."""
    for name, layer in adapted_layers(blocks).items():
        layer.merge()
        blocks.set_submodule(name, layer.get_base_layer())
    blocks.requires_grad_(True)


def write(directory: Path, blocks: nn.ModuleDict, prefix: str, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    """Write a PEFT directory, which ``peft.PeftModel.from_pretrained`` applies to the library's model.

    Args:
        prefix: text before a block's number in the library's names.
        tensors: the adapter's tensors under their names on disk.
    """
    layers = {prefix + name: layer for name, layer in adapted_layers(blocks).items()}
    fed = [name for name, layer in layers.items() if getattr(layer, "is_feedforward", False)]
    content = _peft_config(adapter, list(layers), fed).to_dict() | {"inference_mode": True}
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()}
    directory.mkdir(exist_ok=True)
    (directory / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    save_file(dict(tensors), directory / ADAPTER_WEIGHTS, {"format": "pt"})
    make_readable(directory / ADAPTER_WEIGHTS)  # safetensors writes files that only the owner may read
