import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import ipaddress
import logging
import os
import pathlib
import pickle
import platform
import re
import shutil
import signal
import subprocess
import time
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf

from scaleup.common import tensors
from scaleup.common.errors import UserError

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Attributes(dict):
    """As trainers keep hyper-parameters."""

    __getattr__ = dict.__getitem__


class Ordered(collections.OrderedDict):
    pass


class Kind(enum.Enum):
    IMAGE = 1


@dataclasses.dataclass
class Config:
    rate: float = 0.1
    out: Path = Path("runs")


Pair = collections.namedtuple("Pair", "a b")


class Name(str):
    pass


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class Watched:
    """Counts what is done with it."""

    done: list[str] = []  # noqa: RUF012

    def __new__(cls, *_: Any) -> Any:
        cls.done.append("new")
        return super().__new__(cls)

    def __init__(self) -> None:
        self.done.append("init")

    def __getstate__(self) -> Any:
        return {"a": 1}

    def __setstate__(self, state: Any) -> None:
        self.done.append("setstate")


class Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced: tuple = function, args

    def __reduce__(self) -> Any:
        return self.reduced


def settings() -> Iterator[tuple[str, Any]]:
    yield "namespace", argparse.Namespace(lr=0.1, inner=argparse.Namespace(weight=WEIGHT))
    yield "numpy number", np.float64(71.2)
    yield "numpy integer as key", {np.int64(3): "x"}
    yield "numpy array", np.ones((2, 3))
    yield "numpy objects", np.array(["a", None], dtype=object)
    yield "numpy type", np.dtype("float32")
    yield "numpy generator", np.random.default_rng(0)
    yield "mapping with attributes", Attributes(a=1, weight=WEIGHT)
    yield "ordered mapping", Ordered(a=1)
    yield "defaultdict", collections.defaultdict(list, {"a": [1]})
    yield "deque", collections.deque([1, 2], maxlen=3)
    yield "path", pathlib.PurePosixPath("x")
    yield "path as key", {Path("x"): 1}
    yield "date", datetime.datetime.now(tz=datetime.timezone.utc)
    yield "span", datetime.timedelta(1)
    yield "simple namespace", types.SimpleNamespace(a=1)
    yield "decimal", decimal.Decimal("1.5")
    yield "uuid", uuid.UUID(int=3)
    yield "enum", Kind.IMAGE
    yield "dataclass", Config()
    yield "slots", Slots()
    yield "omegaconf", OmegaConf.create({"a": [1, {"b": None}], "c": "${a}"})
    yield "frozenset", frozenset([1])
    yield "range and slice", [range(3), slice(1, 2)]
    yield "partial", functools.partial(int, base=2)
    yield "torch's own", [torch.Size([1]), torch.device("cpu"), torch.float16, complex(1, 2), {1}, b"x", 2**70]
    yield "class", Config
    yield "optimizer", torch.optim.SGD([torch.nn.Parameter(WEIGHT)], lr=0.1)
    yield "watched", Watched()
    yield "tuples and texts of their own class as keys", {Pair(1, 2): 1, Name("x"): 2}
    yield "pattern", re.compile("blocks.*")
    yield "logger", logging.getLogger("trainer")
    yield "time", time.gmtime(0)
    yield "array", array.array("d", [1.0])
    yield "signal", signal.SIGINT
    yield "address", ipaddress.ip_address("127.0.0.1")
    yield "machine", platform.uname()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", [name for name, _ in settings()])
def test_settings_beside_the_weights_are_read(name: str, legacy: bool, tmp_path: Path) -> None:
    value = dict(settings())[name]
    torch.save(
        {"state_dict": {"weight": WEIGHT}, "args": value}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy
    )
    Watched.done.clear()
    found, beside = tensors.read(tmp_path / "a.pt")
    assert torch.equal(found["weight"], WEIGHT) and found.keys() == {"weight"} and "args" in beside
    assert Watched.done == []
    assert set(torch.serialization.get_safe_globals()) == set(SAFE)  # what was let in is let in no longer


SAFE = torch.serialization.get_safe_globals()

HARM: dict[str, Any] = {
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "subprocess.Popen": lambda mark: Call(subprocess.Popen, ["touch", str(mark)]),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Call(open, str(mark), "w"),
    "a method": lambda mark: Call(Path.touch, mark),
    "shutil": lambda mark: Call(shutil.copy, __file__, str(mark)),
    "import": lambda mark: Call(__import__, "antigravity"),
    "torch.hub": lambda mark: Call(torch.hub.download_url_to_file, f"file://{__file__}", str(mark)),
    "torch.save": lambda mark: Call(torch.save, [1.0], str(mark)),
    "torch.load": lambda mark: Call(torch.load, str(mark)),
    "numpy": lambda mark: Call(np.savetxt, str(mark), [1.0]),
    "pickle": lambda mark: Call(pickle.loads, pickle.dumps(Call(Path.touch, mark))),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", HARM)
def test_a_file_that_calls_functions_is_refused_and_none_is_called(kind: str, legacy: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "mark"
    evil = {"state_dict": {"weight": WEIGHT}, "args": argparse.Namespace(lr=0.1), "code": HARM[kind](mark)}
    torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        UserError, match="is refused.*nothing was run; besides tensors it has .*torch.save.model.state_d"
    ):
        tensors.read(path)
    assert not mark.exists()


def test_functions_of_other_libraries_are_not_called_either(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = Call(safetensors.torch.save_file, {"a": WEIGHT}, str(mark))
    torch.save({"state_dict": {"weight": WEIGHT}, "code": evil}, tmp_path / "evil.pt")
    assert torch.equal(tensors.read(tmp_path / "evil.pt")[0]["weight"], WEIGHT) and not mark.exists()


def test_attributes_of_a_mapping_do_not_stand_in_for_its_methods(tmp_path: Path) -> None:
    state = Call(collections.OrderedDict)
    state.reduced += dict.fromkeys(["items", "keys", "values", "get", "__iter__"], 3), None, iter([("weight", WEIGHT)])
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    assert torch.equal(tensors.read(tmp_path / "a.pt")[0]["weight"], WEIGHT)


def test_mappings_within_themselves_and_shared_ones_end(tmp_path: Path) -> None:
    content: Any = {"state_dict": {"weight": WEIGHT}}
    content["state_dict"]["self"] = content
    for level in range(60):
        inner = content if level == 0 else deep  # noqa: F821
        deep = {"a": inner, "b": inner}
    torch.save(deep | {"model": content["state_dict"]}, tmp_path / "a.pt")
    assert torch.equal(tensors.read(tmp_path / "a.pt")[0]["weight"], WEIGHT)


class Odd:
    def __getstate__(self) -> Any:
        return [1, 2]

    def __setstate__(self, state: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.nn.Linear(2, 3), "torch.nn.modules.linear.Linear; save only the weights, with torch.save"),
        ({"model": torch.nn.Linear(2, 3), "epoch": 3}, "torch.nn.modules.linear.Linear; save only the weights"),
        ({"state_dict": {"weight": WEIGHT}, "odd": Odd()}, "test_stand_ins.Odd; save only the weights"),
        (
            {"epoch": np.float64(3), "name": "x" * 64},
            "holds no tensors by name; besides tensors it has numpy.*save only the",
        ),
    ],
)
def test_objects_that_hold_the_weights_are_named(content: Any, words: str, legacy: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=words) as error:
        tensors.read(tmp_path / "a.pt")
    assert "\n" not in str(error.value)
