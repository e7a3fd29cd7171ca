"""The model card of a model directory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from scaleup.model import TubeViT

GATES = {False: "no", True: "yes", "channel": "one alpha for each channel"}


def card(model: TubeViT, kind: str, content: Mapping[str, Tensor]) -> str:
    """The model card: what the model is, what it needs, how to load it."""
    config, backbone = model.config, model.config["backbone"]
    heads = ", ".join(f"`{name}` ({len(classes)} classes)" for name, classes in config["heads"].items()) or "none"
    tubes = ", ".join(f"`{name}` {'x'.join(map(str, tube['kernel']))}" for name, tube in config["tubes"].items())
    size = sum(tensor.numel() for tensor in content.values())
    adapted = (
        f"- a {config['adapter']['kind']} adapter on the blocks above, in `adapter/`, for peft\n"
        if config["adapter"]
        else ""
    )
    needs = f"It needs the base weights with sha256 `{backbone['sha256']}`." if kind == "delta" else ""
    return f"""---
library_name: scaleup
pipeline_tag: video-classification
base_model: {backbone["name"]}
license: {backbone["license"]}
---
A TubeViT on `{backbone["name"]}`: images {config["input"]["size"]} and clips of {config["input"]["frames"]} frames.

- {config["frozen_depth"]} of {model.depth} blocks frozen, gate: {GATES[config["gate"]]}
{adapted}- tubes: {tubes or "none"}
- heads: {heads}
- this directory is a **{kind}** of {size:,} numbers. {needs}

```python
import scaleup
model = scaleup.load("{{this directory}}")
logits = model(x)  # x: (B, 3, T, H, W) or (B, 3, H, W), see model.preprocess
```
"""
