"""The order of the rooms: a file imports from its own room and from earlier ones, and no import leads back."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = (  # each may import from those before it; scaleup is its __init__.py, the face of the library
    *("common", "config", "data", "checkpoint", "backbones", "model", "transplants", "evaluation", "training"),
    *("sweeps", "outputs", "scaleup", "cli"),
)
STAYS = [ROOT / top for top in ("tests", "tools")]  # in the repository
OUTSIDE = {"install", "tests", "tools", *(path.stem for top in STAYS for path in top.iterdir())}
TWICE = {"build"}  # of backbones and of model


@cache
def files() -> dict[str, Path]:
    """The files of the package by the names under which they are imported."""
    paths = sorted((ROOT / "scaleup").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def room(file: str) -> str:
    return file.split(".")[1] if "." in file else file


@cache
def names(file: str) -> set[str]:
    """All that a file imports, also inside functions and for types alone; ``from a import b`` may mean a file a.b."""
    return set(_names(ast.parse(files()[file].read_text())))


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in files() else str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            yield from [str(node.args[0].value)] if isinstance(node.args[0], ast.Constant) else []


def imports(file: str) -> set[str]:
    """The files of the package that a file imports."""
    return {name for name in names(file) if name in files() and name != file}


def test_every_file_is_in_a_room() -> None:
    assert {room(file) for file in files()} == set(ROOMS)


def test_no_file_imports_from_a_later_room() -> None:
    rank = {name: number for number, name in enumerate(ROOMS)}
    pairs = [(file, other) for file in files() for other in imports(file)]
    assert not [f"{file} imports {other}" for file, other in pairs if rank[room(other)] > rank[room(file)]]


def test_no_import_leads_back_to_where_it_began() -> None:
    done: set[str] = set()

    def follow(file: str, way: tuple[str, ...]) -> None:
        assert file not in way, f"a circle: {' -> '.join((*way[way.index(file) :], file))}"
        if file not in done:
            for other in sorted(imports(file)):
                follow(other, (*way, file))
            done.add(file)

    for file in files():
        follow(file, ())


def test_no_two_files_have_the_same_name() -> None:
    """But for verbs: a file of the command line is named as its verb."""
    named = [path.stem for file, path in files().items() if path.stem != "__init__" and room(file) != "cli"]
    assert {name for name, times in Counter(named).items() if times > 1} <= TWICE


def test_the_package_imports_nothing_that_stays_in_the_repository() -> None:
    kept = [f"{file} imports {name}" for file in files() for name in names(file) if name.split(".")[0] in OUTSIDE]
    assert not kept
