"""``scaleup VERB`` is ``tools/VERB.py``; unknown verbs and recipes name the nearest."""

import argparse
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from scaleup import cli
from scaleup.cli import tool as cli_tool
from scaleup.common.errors import UserError
from scaleup.config import recipe

TOOLS = Path(__file__).parents[2] / "tools"
INSTRUMENTS = {"bench", "demo", "real", "reproduce"}  # of the authors; they stay in the repository


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of ``scaleup WORDS``."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/scaleup", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert isinstance(left.value.code, int)
    return left.value.code


def test_each_verb_is_a_tool_and_each_tool_a_verb() -> None:
    tools = {path.stem for path in TOOLS.glob("*.py")} - INSTRUMENTS
    assert tools - {"draw_method"} == set(cli.VERBS)
    assert all(f'run_verb("{verb}")' in (TOOLS / f"{verb}.py").read_text() for verb in cli.VERBS)


def test_help_lists_the_verbs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert called(monkeypatch) == called(monkeypatch, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [verb] and len(line.split()) > 4 for line in lines) for verb in cli.VERBS)


def test_an_unknown_verb_names_the_nearest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert called(monkeypatch, "transplnt") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 'transplnt' is not a verb of scaleup; allowed are make_shards, ")
    assert "; nearest: 'transplant'" in said and said.count("\n") == 1


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_example_is_of_the_command_that_was_called(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert called(monkeypatch, verb, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: scaleup {verb} ") and f"scaleup {verb} " in said.split("example:")[1]
    assert "tools/" not in said.split("example:")[1]


@pytest.mark.parametrize("tool", [*cli.VERBS, *sorted(INSTRUMENTS)])
def test_a_whole_number_of_an_option_has_a_limit(tool: str) -> None:
    own = tool in cli.VERBS
    module = vars(importlib.import_module(f"scaleup.cli.{tool}")) if own else runpy.run_path(str(TOOLS / f"{tool}.py"))
    parsers = [module["arguments"]()]
    for action in parsers[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    assert not [action.option_strings for parser in parsers for action in parser._actions if action.type is int]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (int, "0", "'0' is not a whole number of at least 1"),
        (int, "1.5", "'1.5' is not a whole number of at least 1"),
        (float, "nan", "'nan' is not a number of at least 1"),
        (float, "inf", "'inf' is not a number of at least 1"),
        (float, "x", "'x' is not a number of at least 1"),
    ],
)
def test_a_number_below_its_limit_is_named(kind: type, text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        cli_tool.at_least(1, kind)(text)
    assert cli_tool.at_least(1, kind)("2") == 2


def test_the_toolkits_own_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/demo/data/videos-train", "runs/demo/data/images-train"):
        Path(name).mkdir(parents=True)
    assert recipe.load("demo/small").model.backbone.kwargs["embed_dim"] == 72
    with pytest.raises(
        UserError, match=r"there is no recipe 'demo/smal'; allowed are a YAML file and .*; nearest: 'demo/small"
    ):
        recipe.load("demo/smal")
    Path("demo").mkdir()
    Path("demo/small").write_text("seed: 3\n")  # a file that is there comes first
    assert recipe.load("demo/small", ["data.train.a.shards=runs"]).seed == 3


def test_what_is_wrong_is_said_before_torch_is_imported() -> None:
    code = "import sys; from importlib import import_module; from scaleup.cli import VERBS; "
    code += "[import_module(f'scaleup.cli.{verb}') for verb in VERBS]; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
