"""What README.md and docs/ name is there: tools and their options, settings of recipes, files, links.

The commands of docs/tutorial.md are run by test_tutorial.py; here those of all pages are read as their tools read them.
"""

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from omegaconf import OmegaConf

import draw_method
from scaleup.cli import tool
from scaleup.config.compose import combinations
from scaleup.config.rules import setting
from scaleup.config.schema import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCED = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")
HOME = re.compile(r"(?:scaleup|recipes|tools|tests|docs)/[\w./-]*")
DOTTED = re.compile(r"scaleup(?:\.[A-Za-z_]+)+")
NAMED = re.compile(r"`([\w.]+)` \(`([\w/]+\.py)`\)")  # `Gate.of` (`model/arm.py`)
LISTED = re.compile(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)")  # `model/arm.py`: `Gate`, `Arm.features`
SETTING = re.compile(r"((?:arm|train|trunk|data)\.[a-z_.]+)(?:=\S+)?")
ENDS = {"&&", "|", "&"}  # of a command of the shell

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, kind: str) -> list[str]:
    return [code for name, code in FENCED.findall(page.read_text()) if name == kind]


def inline(page: Path) -> list[str]:
    """What stands in backticks in the text."""
    return INLINE.findall(FENCED.sub("", page.read_text()))


def commands(page: Path) -> Iterator[list[str]]:
    """Tools with their arguments, from blocks of the shell, and alone in backticks."""
    alone = [code for code in inline(page) if re.match(r"tools/\w+\.py \S", code)]
    for line in "\n".join([*blocks(page, "bash"), *alone]).replace("\\\n", " ").splitlines():
        if found := re.search(r"tools/\w+\.py.*", re.sub(r"^\s*#.*", "", line)):
            words = shlex.split(found[0].replace("'", "") if found[0].count("'") % 2 else found[0], comments=True)
            yield words[: next((at for at, word in enumerate(words) if word in ENDS), len(words))]


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a tool reads from its arguments; it is not run."""
    read: list[Any] = []

    def stop(run: Any, args: Any, show: Any) -> NoReturn:
        read.append(args)
        sys.exit(0)

    monkeypatch.setattr(tool, "main", stop)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert left.value.code == 0, shlex.join(words)
    return read[0]


def is_setting(path: str) -> bool:
    """Whether recipes have a setting of this path; names of tubes, sets and arms may be any."""
    return setting(Recipe, path.split(".")) is not None


def groups(args: Any) -> set[str]:
    """Of the variants that a recipe on a command line offers; one that is not there yet may offer a scale."""
    path = ROOT / getattr(args, "recipe", "")
    return {group for choice in combinations(path) for group in choice} if path.is_file() else {"scale"}


def leaves(content: Any, path: str = "") -> Iterator[str]:
    """The path of every setting in the content of a recipe."""
    if not isinstance(content, dict):
        yield path
        return
    for key, value in content.items():
        yield from leaves(value, f"{path}.{key}" if path else key)


@pages
def test_commands_are_read_by_their_tools(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands(page):
        args = parsed(words, monkeypatch)
        for change in [change for change in getattr(args, "changes", ()) if not change.startswith("$")]:
            key = change.partition("=")[0]
            assert key in groups(args) or is_setting(key), f"{shlex.join(words)}: no recipe has {key}"


def test_commands_are_found() -> None:
    """Or else nothing is tested."""
    tour = [words[0] for words in commands(ROOT / "README.md")]
    assert {Path(name).name for name in tour} >= {f"{name}.py" for name in ("make_shards", "train", "sweep", "export")}
    assert sum(len(list(commands(page))) for page in PAGES) > 60


@pages
def test_settings_are_those_of_recipes(page: Path) -> None:
    named = [found[1] for code in inline(page) if (found := SETTING.fullmatch(code)) and not found[1].endswith(".py")]
    named += [path for code in blocks(page, "yaml") for path in leaves(OmegaConf.to_container(OmegaConf.create(code)))]
    for path in named:
        assert is_setting(path), f"{page.name} names {path}"


def headings(page: Path) -> set[str]:
    """The headings of a page, as links name them: ``note-step`` for ``Note: step``."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        file, _, heading = link.partition("#")
        there = page.parent / file if file else page
        assert there.exists() and (not heading or heading in headings(there)), f"{page.name} links to {link}"


@pages
def test_files_that_are_named_are_there(page: Path) -> None:
    words = [word for code in [*inline(page), *blocks(page, "bash")] for word in code.split()]
    for word in words:
        assert not HOME.fullmatch(word) or (ROOT / word).exists(), f"{page.name} names {word}"


def test_every_tool_and_page_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    files = [*(ROOT / "docs").glob("*.md"), *(ROOT / "tools").glob("*.py")]
    assert not [file.name for file in files if str(file.relative_to(ROOT)) not in text]


def test_the_result_is_drawn_from_the_table_of_the_readme() -> None:
    page = (ROOT / "README.md").read_text()
    found = draw_method.scores(page)
    assert {arm for arm, _ in found} >= set(draw_method.LABELS)
    assert all(0 <= score.low <= score.mean <= score.high <= 100 for row in found.values() for score in row.values())
    assert "| adapted: last1 | random | 5 of 6 | 70 (64 to 77) | 30 (24 to 38) |" in page
    assert found["last1", "random"] == {"shape": (70, 64, 77), "motion": (30, 24, 38)}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def defined(path: Path) -> set[str]:
    """The names that a module defines: ``settle``, ``Gate``, ``Gate.of``."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            names |= {target.id} if isinstance(target, ast.Name) else set()
    return names


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pages
def test_modules_that_are_named_are_there(page: Path) -> None:
    """``scaleup.model.arm`` is a module, ``scaleup.model.arm.Gate`` a name in one."""
    for name in {found for code in [*inline(page), *blocks(page, "python")] for found in DOTTED.findall(code)}:
        module, _, last = name.rpartition(".")
        inside = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        assert (
            is_module(name)
            or (inside.exists() and last in defined(inside))
            or (module == "scaleup" and f'"{last}"' in (ROOT / "scaleup" / "__init__.py").read_text())
        ), f"{page.name} names {name}"


def test_the_architecture_lists_every_module_and_no_other() -> None:
    text, listed, room = (ROOT / "docs" / "architecture.md").read_text(), set(), ""
    for line in text.partition("```\nscaleup/\n")[2].partition("```")[0].splitlines():
        if line.endswith("/"):
            room = line
        elif line:
            listed.add(room + line.split()[0])
    modules = {str(path.relative_to(ROOT / "scaleup")) for path in (ROOT / "scaleup").rglob("*.py")}
    assert listed == {name for name in modules if not name.endswith("/__init__.py") or name == "cli/__init__.py"}


def test_the_architecture_names_what_is_defined_where_it_says() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    pairs = [(path, name) for name, path in NAMED.findall(text)]
    pairs += [(path, name) for path, names in LISTED.findall(text) for name in re.findall(r"[\w.]+", names)]
    assert len(pairs) > 30
    for path, name in pairs:
        assert name in defined(ROOT / "scaleup" / path), f"{path} does not define {name}"
