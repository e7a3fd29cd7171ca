"""The library: the run of README.md in Python, and the names of scaleup."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scaleup
from scaleup.data.shapes import make_shapes

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
SMALLER = ["data.batch=8", "data.workers=0", "train.warmup=1", "train.kernels=lean"]


def shrink(code: str) -> str:
    """The program with two steps of few samples in place of many."""
    shorter, count = re.subn(r'"train\.steps=\d+"', ", ".join(map(repr, ["train.steps=2", *SMALLER])), code)
    assert count == 2, "the program of README.md trains twice"
    return shorter


def test_the_program_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """On shards of a few clips, after one step of the demo's large model."""
    (code,) = (code for code in BLOCK.findall((ROOT / "README.md").read_text()) if "scaleup.sweep(" in code)
    assert len([line for line in code.splitlines() if line]) <= 30
    monkeypatch.chdir(tmp_path)
    make_shapes(Path("runs/demo/data"), {"train": 16, "val": 6}, {"train": 16}, processes=1)
    scaleup.train(scaleup.load_recipe("demo/large", ["train.steps=1", *SMALLER]))
    names: dict = {}
    exec(compile(shrink(code), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()] == [
        "small model",
        "short",
        "long",
        "head",
        "last2_gate",
    ]
    assert sorted(names["run"].arms) == ["head", "last2_gate"]
    assert not names["model"].training


def test_names_wait_for_torch_until_they_are_used() -> None:
    code = "import sys, scaleup; assert 'torch' not in sys.modules; print(len(dir(scaleup)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_there_and_known_to_type_checkers() -> None:
    tree = ast.parse((ROOT / "scaleup" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == scaleup.SOURCES
    for name in scaleup.__all__:
        assert getattr(scaleup, name).__doc__, name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = scaleup.trian
