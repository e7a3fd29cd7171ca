"""scaleup: large frozen image ViTs that understand video, by sparse video tubes (TubeViT)."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # torch and timm take seconds to import: only who loads a model waits for them
        from scaleup.checkpoint import load

        return load
    raise AttributeError(f"module 'scaleup' has no attribute {name!r}")
