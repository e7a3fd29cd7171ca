"""What a run leaves behind when it is complete: a directory for each model, and ``result.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaleup.common.environment import environment
from scaleup.common.files import write_text
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import ArmTrainer
from scaleup.training.head_progress import Recent
from scaleup.training.run_models import sizes

RESULT = "result.json"


def is_complete(out: Path) -> bool:
    return (out / RESULT).is_file()


def arms(trainers: Mapping[str, ArmTrainer], recent: Mapping[str, Recent], out: str) -> dict[str, Any]:
    """``{"arms", "environment"}`` of what :func:`scaleup.training.run.run` returns, and the exit code where an arm
    diverged."""
    found = {name: {**sizes(trainer.model), **trainer.result()} for name, trainer in trainers.items()}
    for name, arm in found.items():
        arm["at_chance"] = recent[name].at_chance
        arm["directory"] = str(Path(out) / name) if arm["diverged"] is None else None
    lost = any(arm["diverged"] is not None for arm in found.values())
    return {"arms": found, "environment": environment()} | ({"exit": 1} if lost else {})


def write(result: dict[str, Any], models: Mapping[str, TubeViT], out: Path, data: Mapping[str, Any]) -> None:
    """Write the models of arms that did not diverge, and then the result, which says that the run is complete.

    Args:
        data: what they were trained on, see :func:`scaleup.training.run_inputs.lists`.
    """
    trunk = {"seconds": result["trunk_seconds"], **result["trunk"]}
    for name, arm in result["arms"].items():
        if arm["diverged"] is None:
            began = models[name].report
            models[name].report = {"training": arm, "data": data, "trunk": trunk, "began_from": began}
            models[name].save_pretrained(out / name, overwrite=True)
    note(result, out)


def note(result: dict[str, Any], out: Path) -> None:
    write_text(out / RESULT, json.dumps(result, indent=2))
