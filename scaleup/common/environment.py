"""Where something ran: what anybody asks first who cannot repeat it."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("scaleup", "torch", "timm", "open_clip_torch", "deepspeed", "peft", "webdataset", "av")


def environment() -> dict[str, str]:
    """Python, platform, processor or accelerator, and the versions of what computes."""
    device = torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name() if device is not None and device.type == "cuda" else str(device or "cpu")
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    about = {"python": platform.python_version(), "platform": platform.platform(), "device": f"{name}, {cores}"}
    return about | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    """Not all that is imported was installed: a checkout may just lie on Python's path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
