"""Torch checkpoints are read without running code: what they hold beside tensors becomes stand-ins.

Trainers save settings, dates and numbers of numpy beside the weights. torch reads tensors and plain containers alone.
For every other class that a file names it is given a stand-in, which takes what the class would have taken and makes
nothing of it. No module is imported because a file names it, and nothing that a file names is called.
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

LEGACY_PICKLES = 5  # at the start of a checkpoint that is no archive; the bytes of the tensors follow
HARMLESS = {  # of Python's own, what settings hold that are saved as calls
    *("argparse", "collections", "datetime", "decimal", "enum", "fractions", "functools", "pathlib", "random", "types"),
    *("typing", "uuid", "zoneinfo", "builtins.frozenset", "builtins.range", "builtins.slice"),
    *("array", "ipaddress", "logging.getLogger", "platform.uname_result", "re._compile", "signal.Signals"),
    *("time.struct_time", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar"),
    "numpy._core.multiarray.scalar",
}
KNOWN = re.compile(  # what torch reads itself
    r"""torch[.](\w+|(_utils|_tensor|storage|nn[.]parameter)[.]\w+) | collections[.](OrderedDict|Counter)
    | builtins[.](set|bytearray|complex) | _codecs[.]encode""",
    re.VERBOSE,
)


def is_suspect(name: str) -> bool:
    """Whether a file that has ``module.name`` called is refused: what settings never need, which are functions of
    Python's own and, of torch and numpy, those for users (what rebuilds their objects is called ``_reconstruct``).

    Nothing is called either way. A file that tries it is not to be trusted with the rest.
    """
    module, own = name.partition(".")[0], name.rpartition(".")[2]
    suspect = module in sys.stdlib_module_names or module in ("torch", "numpy") and own[:1].islower()
    return suspect and not {module, name} & HARMLESS


class _Kind(type):
    """The class of stand-ins: to call one makes an object that takes whatever a file gives it."""

    name = ""

    def __call__(cls, *args: Any) -> Any:
        if is_suspect(cls.name):
            raise UnpicklingError(f"{cls.name} is not called")
        if cls.name == "collections.deque":
            return []
        made: Any = object.__new__(cls)  # type: ignore[arg-type]
        return made if args and cls.name != "collections.defaultdict" else Counter()


class _StandIn(metaclass=_Kind):
    """In place of a class: a subclass for each that a file names."""

    def __new__(cls, *args: Any) -> Any:
        if args:  # a tuple, a text or a number of a class of its own, which may be a key
            return object.__new__(cls)
        return Counter()  # of the mappings that torch fills, the one that takes attributes too

    def __setstate__(self, state: Any) -> None:
        """The state is thrown away."""


def load(path: Path, maps: bool) -> Any:
    """The content of a torch checkpoint.

    Raises:
        UnpicklingError: it calls what is suspect, or is no plain checkpoint.
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
    """A mapping of a checkpoint as a plain dict, None for anything else.

    A file may give a mapping attributes in place of its methods, so those of dict are used.
    """
    if type(content) not in (dict, OrderedDict, Counter):
        return None
    return {str(key): value for key, value in dict.items(content)}


def foreign(path: Path) -> list[str]:
    """``module.name`` of the classes and functions that a checkpoint names and torch does not read; none where it is
    damaged."""
    names: dict[str, None] = {}
    try:
        with _pickles(path) as pickles:
            for pickle in pickles:
                words = (word for operation, word, _ in pickletools.genops(pickle) if operation.name == "GLOBAL")
                names |= dict.fromkeys(_full(*str(word).split(" ", 1)) for word in words)
    except Exception:  # damaged bytes make pickletools raise anything
        return []
    return [name for name in names if not KNOWN.fullmatch(name)]


def _full(module: str, name: str) -> str:
    """Pickles may carry the names of Python 2."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


@contextmanager
def _pickles(path: Path) -> Iterator[list[IO[bytes]]]:
    """The pickles of a checkpoint; in a legacy one, each begins where the last ends."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            entry = next(each for each in archive.infolist() if each.filename.endswith("/data.pkl"))
            if entry.compress_type != ZIP_STORED:
                raise UnpicklingError("compressed, which torch never does: its size is anybody's guess")
            with archive.open(entry) as file:
                yield [file]
    else:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
            yield [file] * LEGACY_PICKLES  # type: ignore[list-item]
