"""The machine: what it is, its memory, and amounts of bytes in words."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

from scaleup.errors import UserError

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str, option: str) -> int:
    """``200G`` (10^9) or ``24GiB`` (2^30) -> bytes; ``option`` is what was given so.

    Raises:
        UserError: it is no amount.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(i?)b?", text.lower())
    if not match or (match[3] and not match[2]):
        raise UserError(f"{option} {text!r} is no amount of bytes; allowed are such as 200G, 1.5T, 800M and 24GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** POWERS[match[2]])


def format_bytes(size: float) -> str:
    """Bytes in words: ``12.3 GB``."""
    unit = next((unit for unit in "TGMk" if size >= UNITS[unit]), "")
    return f"{size / UNITS[unit]:.3g} {unit}B"


PACKAGES = ("scaleup", "torch", "timm", "open_clip_torch", "deepspeed", "peft", "webdataset", "av")


def environment() -> dict[str, str]:
    """Python, platform, processor or accelerator, and the versions of what computes."""
    import torch  # takes seconds: tools import this module before they know what is asked

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
