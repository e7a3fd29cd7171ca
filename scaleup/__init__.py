"""scaleup adapts large frozen image ViTs to video with sparse video tubes (TubeViT).

README.md shows a complete example in Python: a small model, its transplant, two arms, their accuracy, an export.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaleup.checkpoint.model_directory import Pool
    from scaleup.common.errors import UserError
    from scaleup.config.recipe import load as load_recipe
    from scaleup.config.recipe import sweep_arms
    from scaleup.config.schema import Arm, Recipe, Tube
    from scaleup.evaluation.accuracy import evaluate
    from scaleup.evaluation.depth_profile import probe
    from scaleup.evaluation.predictor import predict
    from scaleup.model.build import load, load_run
    from scaleup.outputs.conversion import export
    from scaleup.sweeps.costs import plan
    from scaleup.sweeps.out_of_memory import train
    from scaleup.sweeps.parts import sweep
    from scaleup.transplants.adapted_model import adapt, transplant
    from scaleup.transplants.transplant_plan import Options

# OpenMP threads that wait for work sleep instead of spinning. Spinning threads take the processors from loader
# processes and other jobs: with two such jobs a step took six times as long. OpenMP reads these variables when torch
# is imported. If the user has set one of them, none is changed.
SLEEP = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}  # for GNU's OpenMP, and for Intel's
if not {*SLEEP, "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(SLEEP)

__version__ = "0.1.0"
SOURCES = {  # public name -> module:name; imported at first use, because torch and timm take seconds to import
    "Arm": "scaleup.config.schema:Arm",
    "Options": "scaleup.transplants.transplant_plan:Options",
    "Pool": "scaleup.checkpoint.model_directory:Pool",
    "Recipe": "scaleup.config.schema:Recipe",
    "Tube": "scaleup.config.schema:Tube",
    "UserError": "scaleup.common.errors:UserError",
    "adapt": "scaleup.transplants.adapted_model:adapt",
    "evaluate": "scaleup.evaluation.accuracy:evaluate",
    "export": "scaleup.outputs.conversion:export",
    "load": "scaleup.model.build:load",
    "load_recipe": "scaleup.config.recipe:load",
    "load_run": "scaleup.model.build:load_run",
    "plan": "scaleup.sweeps.costs:plan",
    "predict": "scaleup.evaluation.predictor:predict",
    "probe": "scaleup.evaluation.depth_profile:probe",
    "sweep": "scaleup.sweeps.parts:sweep",
    "sweep_arms": "scaleup.config.recipe:sweep_arms",
    "train": "scaleup.sweeps.out_of_memory:train",
    "transplant": "scaleup.transplants.adapted_model:transplant",
}
__all__ = [*SOURCES]


def __getattr__(name: str) -> Any:
    if name not in SOURCES:
        raise AttributeError(f"module 'scaleup' has no attribute {name!r}")
    module, attribute = SOURCES[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *SOURCES]
