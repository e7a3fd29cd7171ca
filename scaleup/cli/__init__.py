"""The command line: ``scaleup VERB ...``, or ``tools/VERB.py ...``, which does the same.

Each verb is a module with ``arguments() -> ArgumentParser``, ``run(args) -> result`` and ``show(result)``.
"""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import scaleup
from scaleup.cli import tool
from scaleup.common.errors import nearest

VERBS = (  # in the order in which users need them
    *("make_shards", "check_shards", "train", "backbones", "transplant", "plan", "cache", "sweep"),
    *("evaluate", "probe", "report", "predict", "export"),
)


def main() -> NoReturn:
    """``scaleup VERB ...``"""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    if verb == "--version":
        print(scaleup.__version__)
        sys.exit(0)
    if verb not in VERBS:
        allowed = f"allowed are {', '.join(VERBS)}{nearest(verb, VERBS)}"
        print(f"error: {verb!r} is not a verb of scaleup; {allowed}", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"scaleup {verb}"]
    run_verb(verb)


def run_verb(verb: str) -> NoReturn:
    """Run ``verb`` with the arguments of this process; see :func:`scaleup.cli.tool.main`."""
    module = _module(verb)
    tool.main(module.run, module.arguments().parse_intermixed_args(), module.show)


def _help() -> str:
    words = [f"  {verb:<14}{_first_line(verb)}" for verb in VERBS]
    return "\n".join(
        [
            "Usage: scaleup VERB ...",
            "",
            "Adapts large frozen image ViTs to video with sparse video tubes (TubeViT).",
            "",
            *words,
            "",
            "`scaleup VERB --help` shows the options of a verb and an example.",
        ]
    )


def _first_line(verb: str) -> str:
    """The first line of a verb's docstring, read from its file: importing all verbs takes a second."""
    source = Path(__file__).with_name(f"{verb}.py").read_bytes()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _module(verb: str) -> ModuleType:
    return import_module(f"scaleup.cli.{verb}")
