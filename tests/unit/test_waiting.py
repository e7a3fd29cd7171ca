"""Threads that wait for work sleep, in every process that computes, unless the user says otherwise."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLEEPS = "GOMP_SPINCOUNT = '0'"  # threads go round so many times before they sleep
OWN = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}


def read_by_openmp(code: str) -> subprocess.CompletedProcess:
    """What OpenMP says that it read when torch was loaded by ``code``: in stderr."""
    env = OWN | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_threads_sleep_where_scaleup_is_imported_first_and_libraries_wait_until_they_are_asked_for():
    code = "import sys, scaleup, scaleup.training.engine; from scaleup.backbones.build import build; "
    code += "build('timm:test_vit', {}, None, 'meta'); print(sys.modules.keys() & {'deepspeed', 'open_clip'})"
    done = read_by_openmp(code)
    assert SLEEPS in done.stderr and done.stdout == "set()\n"


@pytest.mark.all
def test_threads_do_not_sleep_by_themselves():
    assert SLEEPS not in read_by_openmp("import torch").stderr


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1000"}, {"KMP_BLOCKTIME": "200"}])
def test_who_has_set_one_means_it(own: dict[str, str]):
    code = "import os, scaleup; print({k: v for k, v in os.environ.items() if k[:4] in ('OMP_', 'KMP_', 'GOMP')})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=OWN | own, capture_output=True, text=True)
    assert ast.literal_eval(done.stdout) == own


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_tools_import_scaleup_before_anything_that_loads_torch(tool: Path):
    imports = [node for node in ast.parse(tool.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    outside = [name.partition(".")[0] for name in names]
    before = outside[: outside.index("scaleup")]
    assert set(before) <= sys.stdlib_module_names


@pytest.mark.all
def test_a_tool_computes_with_threads_that_sleep():
    env = OWN | {"OMP_DISPLAY_ENV": "verbose"}
    tool = [sys.executable, "tools/evaluate.py", "nowhere", "nowhere"]  # refused after torch is loaded
    assert SLEEPS in subprocess.run(tool, cwd=ROOT, env=env, capture_output=True, text=True).stderr
