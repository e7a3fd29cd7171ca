"""A recipe put together: its base, its variants, and the changes of the command line.

A recipe may stand on another and offer variants of itself, in groups of which one each is chosen::

    base: b.yaml                       # beside this file; what stands here is merged over it
    variants:
      scale:                           # scale=desk on the command line; the first is the default
        paper: {}
        desk: {model: {input: {size: [32, 32]}}}

A variant may have variants of its own, and a group may stand in several places: its choice holds in all of them.
Later wins: base, the file itself, its variants in their order, changes from outside. An entry of a mapping of names (a
tube, a training set, an arm) that is null is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.basecontainer import get_yaml_loader  # type: ignore[attr-defined]  # its reading of YAML, not PyYAML's
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scaleup.errors import UserError, nearest

IsText = Callable[[Sequence[str]], bool]  # whether the setting at a key path is text


class Word:
    """A number or a truth value, and the characters that stood for it."""

    def __init__(self, text: str, value: bool | int | float) -> None:
        self.text, self.value = text, _value(text, value)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return repr(self.value)


def _value(text: str, value: bool | int | float) -> bool | int | float | str:
    """YAML takes 12:30 for 750 and 010 for 8, which nobody means."""
    if ":" in text:
        return text
    return int(text.replace("_", "")) if re.fullmatch(r"[+-]?0[0-7_]+", text) else value


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """Keys are text; other numbers and truth values are Words."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
        super().flatten_mapping(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        return Word(node.value, value) if isinstance(value, bool | int | float) else value


def read(text: str) -> Any:
    """The content of a YAML document; raises YAMLError."""
    return yaml.load(text, _Loader)  # noqa: S506  a safe loader


def typed(content: Any, is_text: IsText, at: tuple[str, ...] = ()) -> Any:
    """``content`` with text where a setting is text, numbers and truth values elsewhere."""
    if isinstance(content, dict):
        return {key: typed(value, is_text, (*at, key)) for key, value in content.items()}
    if isinstance(content, list):
        return [typed(value, is_text, (*at, "")) for value in content]
    if isinstance(content, Word):
        return content.text if is_text(at) else content.value
    return content


NULL = ("", "~", "null", "Null", "NULL")  # YAML's words for no value, of text too

KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[^.\[\]]+\])*")  # a.b or a[b]


def compose(
    path: Path,
    overrides: Sequence[str],
    reserved: Collection[str],
    mistakes: list[str],
    is_text: IsText = lambda _: False,
) -> Any:
    """The content of the file at ``path`` with the variants and changes of ``overrides`` (key=value), plain.

    Args:
        reserved: keys of a recipe, which no group of variants may have.
        mistakes: a sentence is added for each override that is none.
        is_text: which settings are taken as they are written; all others are YAML.

    Raises:
        UserError: a file is missing or cannot be read, or there is no such variant.
    """
    pairs = [change.partition("=") for change in overrides]
    mistakes += [f"{change!r} is not key=value" for change in overrides if change.find("=") < 1]
    with _readable(path):
        content = _file(path, ())
        groups = set(_groups(content, str(path)))
        if both := sorted(groups & set(reserved)):
            raise UserError(f"the recipe {str(path)!r} has variants named {both[0]!r}, a setting of every recipe")
        content = _choose(content, {key: value for key, _, value in pairs if key in groups}, str(path))
        for key, equals, value in pairs:
            if key and equals and key not in groups:
                content = merge(content, _change(key, value, is_text, mistakes))
        return typed(_resolve(content), is_text)


def _change(key: str, value: str, is_text: IsText, mistakes: list[str]) -> dict[str, Any]:
    """One change of the command line, nested as in a file; nothing, and a sentence, where it is none."""
    names = re.findall(r"[^.\[\]]+", key)
    if not KEY.fullmatch(key):
        mistakes.append(f"{key!r} is no setting's key; one is names with dots between them, such as train.steps")
        return {}
    if "${" in value or value == "???":
        mistakes.append(f"{key}: {value!r} stands for another value, which is allowed in files alone; write that out")
        return {}
    try:
        content: Any = value if value not in NULL and is_text(names) else read(value)
    except YAMLError:
        mistakes.append(f"{key}: {value!r} is not a value as YAML has them: a number, a text, [a list], {{a: mapping}}")
        return {}
    for name in reversed(names):
        content = {name: content}
    return content


def merge(content: Any, changes: Any) -> Any:
    """``content`` with ``changes`` over it: mappings are merged, lists are replaced."""
    if isinstance(content, dict) and isinstance(changes, dict):
        return content | {key: merge(content.get(key), value) for key, value in changes.items()}
    if {type(content), type(changes)} == {dict, list}:
        raise ValueError(f"Cannot merge incompatible values, {content} and {changes}")
    return changes


def _resolve(content: dict[str, Any]) -> Any:
    """``content`` with the values that ``${key}`` stands for."""
    return OmegaConf.to_container(OmegaConf.create(content, flags={"allow_objects": True}), resolve=True)


def combinations(path: Path) -> list[dict[str, str]]:
    """Every choice of variants that the file at ``path`` offers, ``{group: name}``, the default first.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    with _readable(path):
        content = _file(path, ())
        list(_groups(content, str(path)))  # refuses what is none
        return _combinations(content, {})


def _combinations(content: Any, chosen: dict[str, str]) -> list[dict[str, str]]:
    combined = [chosen]
    for group, variants in (content.get("variants") or {}).items():
        combined = [
            deeper
            for choice in combined
            for name, changes in variants.items()
            if choice.get(group, name) == name
            for deeper in _combinations(changes or {}, choice | {group: name})
        ]
    return combined


def _file(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The content of a file over that of its base."""
    if not path.is_file():
        near = nearest(path.name, [other.name for other in path.parent.glob("*.yaml")])
        raise UserError(f"no recipe at {str(path)!r}{near}" + (f"; {str(above[-1])!r} is based on it" if above else ""))
    if path.resolve() in above:
        raise UserError(f"the recipe {str(path)!r} is based on itself")
    with _readable(path):
        content = read(path.read_text(encoding="utf-8")) or {}
        if not isinstance(content, dict):
            raise UserError(f"the recipe {str(path)!r} is not a mapping of settings")
        base = _resolve({"base": content.pop("base", None)})["base"]
        return content if base is None else merge(_file(path.parent / str(base), (*above, path.resolve())), content)


def _groups(content: dict[str, Any], where: str) -> Iterator[str]:
    """The name of every group of variants, those within variants too.

    Raises:
        UserError: variants are not mappings all the way.
    """
    groups = content.get("variants") or {}
    if not isinstance(groups, dict) or not all(map(_are_variants, groups.values())):
        raise UserError(f"the recipe {where!r}: variants: {groups} is not a mapping of groups to names to settings")
    for group, variants in groups.items():
        yield group
        for changes in variants.values():
            yield from _groups(changes or {}, where)


def _are_variants(variants: Any) -> bool:
    """Whether there is at least one name, each with settings or nothing."""
    if not isinstance(variants, dict) or not variants:
        return False
    return all(changes is None or isinstance(changes, dict) for changes in variants.values())


def _choose(content: dict[str, Any], choices: Mapping[str, str], where: str) -> dict[str, Any]:
    """``content`` with the chosen variant of each group merged over it."""
    chosen = {key: value for key, value in content.items() if key != "variants"}
    for group, variants in (content.get("variants") or {}).items():
        name = choices.get(group, next(iter(variants)))
        if name not in variants:
            raise UserError(f"{group}={name}: {where!r} has {', '.join(variants)}{nearest(name, variants)}")
        chosen = merge(chosen, _choose(variants[name] or {}, choices, where))
    return chosen


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Inside, what YAML and OmegaConf complain of is a sentence about the file at ``path``."""
    try:
        yield
    except UserError:  # is one already
        raise
    except (YAMLError, OmegaConfBaseException, OSError, TypeError, ValueError) as error:
        raise UserError(f"the recipe {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
