"""Shared by all tools: errors as one sentence and exit code 2, ``--json``, and a clean stdout."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, get_args

from scaleup.common import processes
from scaleup.common.files import json_value
from scaleup.common.timing import is_first_rank
from scaleup.config import rules


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one sentence, without a list of all options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists what is allowed\n")


def parser(description: str | None, example: str) -> argparse.ArgumentParser:
    """An argument parser whose ``--help`` ends with ``example`` and that knows ``--json``."""
    if sys.argv[0].startswith("scaleup "):
        example = re.sub(r"tools/(\w+)\.py", r"scaleup \1", example)
    parser = Parser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # some launchers add it; it is not used
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file of a run or a sweep, or a name such as demo/small")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changes to the recipe, such as arm.lr=1e-4")


def choices(section: type, setting: str) -> tuple[str, ...]:
    """The allowed values of a setting of a recipe."""
    return get_args(rules.setting(section, [setting]))


def at_least(low: float, kind: type = int) -> Callable[[str], Any]:
    """The argparse type of an option: a number of at least ``low``."""

    def number(text: str) -> Any:
        with suppress(ValueError):
            if low <= (value := kind(text)) < math.inf:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * (kind is int)}number of at least {low}")

    return number


def show_drift(precision: str, drift: Mapping[int, float]) -> None:
    """Print how much low precision changes the output of the frozen blocks."""
    for depth, moved in drift.items():
        print(f"trunk in {precision}: h after block {depth} changes by {moved:.2%} of its RMS")


def main(run: Callable[[argparse.Namespace], Any], args: argparse.Namespace, show: Callable) -> NoReturn:
    """Run a tool: ``run(args)`` returns the result, made of dataclasses and JSON values; ``show(result)`` prints it as
    text.

    The exit code is 0, or the result's ``exit`` if it has one; 2 after an error whose cause is known; 130 after
    Ctrl-C; 1 after any other error. After an error the process ends at once, with all its child processes.
    """
    try:
        with _keep_stdout_clean():
            result = run(args)
        if args.json and is_first_rank():
            print(json.dumps(result, default=json_value))
        elif is_first_rank():
            show(result)
        sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:
        code = 1
        try:
            code = _explain(error)
        finally:
            processes.end_all(code)
    sys.exit(result.get("exit", 0) if isinstance(result, dict) else getattr(result, "exit", 0))


def _explain(error: BaseException) -> int:
    """Print the error; return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if cause := processes.explain(error):
        print(f"error: {cause}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    return 1


@contextmanager
def _keep_stdout_clean() -> Iterator[None]:
    """Send what libraries write to stdout, from Python or C++, to stderr. Only the result is written to stdout."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
