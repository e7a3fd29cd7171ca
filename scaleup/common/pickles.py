"""Reads torch checkpoints without running code: objects that are not tensors become stand-ins.

Trainers save settings, dates and numpy numbers with the weights, but torch (weights_only) reads only tensors and plain
containers. Here every other class in a file is replaced by a stand-in, which accepts all arguments and does nothing. No
module is imported because a file names it, and nothing that a file names is called.
"""

from __future__ import annotations

import mmap
import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch

LEGACY_PICKLES = 5  # pickles at the start of a checkpoint that is not a zip file; the tensors' bytes follow
HARMLESS = {  # of Python's own functions and classes, those that saved settings need
    *("argparse", "collections", "datetime", "decimal", "enum", "fractions", "functools", "pathlib", "random", "types"),
    *("typing", "uuid", "zoneinfo", "builtins.frozenset", "builtins.range", "builtins.slice"),
    *("array", "ipaddress", "logging.getLogger", "platform.uname_result", "re._compile", "signal.Signals"),
    *("time.struct_time", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar"),
    "numpy._core.multiarray.scalar",
}
KNOWN = re.compile(  # classes and functions that torch reads itself
    r"""torch[.](\w+|(_utils|_tensor|storage|nn[.]parameter)[.]\w+) | collections[.](OrderedDict|Counter)
    | builtins[.](set|bytearray|complex) | _codecs[.]encode""",
    re.VERBOSE,
)


def is_suspect(name: str) -> bool:
    """Whether a file that calls ``module.name`` is refused.

    Refused are functions that saved settings never need: Python's own, and public functions of torch and numpy.
    (Private ones such as ``_reconstruct`` rebuild objects.) Nothing is called in any case, but such a file is not
    trustworthy.
    """
    module, own = name.partition(".")[0], name.rpartition(".")[2]
    suspect = module in sys.stdlib_module_names or module in ("torch", "numpy") and own[:1].islower()
    return suspect and not {module, name} & HARMLESS


class _Kind(type):
    """The metaclass of stand-ins. Calling a stand-in makes an object that accepts everything a file gives it."""

    name = ""

    def __call__(cls, *args: Any) -> Any:
        if is_suspect(cls.name):
            raise UnpicklingError(f"{cls.name} is not called")
        if cls.name == "collections.deque":
            return []
        made: Any = object.__new__(cls)  # type: ignore[arg-type]
        return made if args and cls.name != "collections.defaultdict" else Counter()


class _StandIn(metaclass=_Kind):
    """A stand-in for a class. There is a subclass for each class that a file names."""

    def __new__(cls, *args: Any) -> Any:
        if args:  # subclasses of tuple, str or a number, which may be keys of a dict
            return object.__new__(cls)
        return Counter()  # torch fills it like a dict, and it accepts attributes

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


def load(path: Path, maps: bool) -> Any:
    """The content of a torch checkpoint.

    Raises:
        UnpicklingError: it calls a suspect function, or is not a plain checkpoint.
        Exception: it is damaged.
    """
    try:
        return _load(path, maps)
    except UnpicklingError:
        named = foreign(path)
        if not named:
            raise
    kinds: Any = [(_Kind("StandIn", (_StandIn,), {"name": name}), name) for name in named]
    with torch.serialization.safe_globals(kinds):
        return _load(path, maps)


def _load(path: Path, maps: bool) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=maps)


def entries(content: Any) -> dict[str, Any] | None:
    """A mapping of a checkpoint as a plain dict; None for anything else.

    A file may overwrite the methods of a mapping, so dict's methods are used.
    """
    if type(content) not in (dict, OrderedDict, Counter):
        return None
    return {str(key): value for key, value in dict.items(content)}


def foreign(path: Path) -> list[str]:
    """``module.name`` of the classes and functions in a checkpoint that torch does not read; empty if it is damaged."""
    names: dict[str, None] = {}
    try:
        with _pickles(path) as pickles:
            for pickle in pickles:
                words = (word for operation, word, _ in pickletools.genops(pickle) if operation.name == "GLOBAL")
                names |= dict.fromkeys(_full(*str(word).split(" ", 1)) for word in words)
    except Exception:  # pickletools raises many kinds of errors for damaged bytes
        return []
    return [name for name in names if not KNOWN.fullmatch(name)]


def _full(module: str, name: str) -> str:
    """The name in Python 3; pickles may have names of Python 2."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


@contextmanager
def _pickles(path: Path) -> Iterator[list[IO[bytes]]]:
    """The pickles of a checkpoint. In the old format they follow one another."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            entry = next(each for each in archive.infolist() if each.filename.endswith("/data.pkl"))
            if entry.compress_type != ZIP_STORED:
                raise UnpicklingError("compressed, which torch never does; its size is unknown")
            with archive.open(entry) as file:
                yield [file]
    else:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
            yield [file] * LEGACY_PICKLES  # type: ignore[list-item]
