"""scaleup: large frozen image ViTs that understand video, by sparse video tubes (TubeViT)."""

from __future__ import annotations

import os
from typing import Any

# Threads that wait for work sleep. They would spin, and take the processor from loader processes and other jobs: beside
# two of them a step took six times as long. OpenMP reads these when torch is loaded; who has set one means it.
SLEEP = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}  # of GNU's OpenMP, and of Intel's
if not {*SLEEP, "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(SLEEP)

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # torch and timm take seconds to import: only who loads a model waits for them
        from scaleup.model.build import load

        return load
    raise AttributeError(f"module 'scaleup' has no attribute {name!r}")
