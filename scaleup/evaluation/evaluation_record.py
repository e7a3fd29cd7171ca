"""What an evaluation found, kept in the directory of the model that it is of, and shown on its card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaleup.checkpoint.model_directory import ADAPTER, ADAPTER_WEIGHTS, DELTA, FULL
from scaleup.common import tensors
from scaleup.common.files import write_text
from scaleup.evaluate import Evaluation
from scaleup.model.tubevit import TubeViT

SET = ("shards", "modality", "list_sha256", "views", "labels")  # what an evaluation was measured on


def record(directory: Path, model: TubeViT, evaluation: Evaluation, how: Mapping[str, Any]) -> None:
    """Add an evaluation to ``report.json`` of a model directory, and to its card.

    It takes the place of an earlier one on the same set in the same way.

    Args:
        how: what else tells two evaluations apart: other strides, the precision of frozen blocks.
    """
    path = directory / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    on = {key: getattr(evaluation, key) for key in SET} | dict(how)
    heads = {head: asdict(score) for head, score in evaluation.heads.items()}
    entry = {"on": on, "samples": evaluation.samples, "failures": len(evaluation.failures), "heads": heads}
    others = [each for each in report.get("evaluations", []) if each["on"] != on]
    model.report = report | {"evaluations": [*others, entry]}
    write_text(path, json.dumps(model.report, indent=2) + "\n")
    kind = "full" if (directory / FULL).exists() else "delta"
    files = [directory / (FULL if kind == "full" else DELTA), directory / ADAPTER / ADAPTER_WEIGHTS]
    size = sum(each.numel() for file in files if file.exists() for each in tensors.File(file).mapped.values())
    write_text(directory / "README.md", model.card(kind, size))
