"""Merges a recipe with its base, its variants, and the changes of the command line.

A recipe may have a base, and groups of variants. One variant of each group is chosen::

    base: b.yaml                       # a file in the same folder; this file is merged over it
    variants:
      scale:                           # scale=desk on the command line; the first is the default
        paper: {}
        desk: {model: {input: {size: [32, 32]}}}

A variant may have variants too. A group may occur in several places; one choice holds for all of them. The order of
merging is: base, the file itself, its variants in their order, changes of the command line. Later values win. A tube, a
training set or an arm that is null is removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.basecontainer import get_yaml_loader  # type: ignore[attr-defined]  # OmegaConf's rules for YAML
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scaleup.common.errors import UserError, nearest

IsText = Callable[[Sequence[str]], bool]  # whether the setting at a key path is text


class Word:
    """A number or a boolean, with the text that it was written as."""

    def __init__(self, text: str, value: bool | int | float) -> None:
        self.text, self.value = text, _value(text, value)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return repr(self.value)


def _value(text: str, value: bool | int | float) -> bool | int | float | str:
    """Undo two surprises of YAML, which reads 12:30 as 750 and 010 as 8."""
    if ":" in text:
        return text
    return int(text.replace("_", "")) if re.fullmatch(r"[+-]?0[0-7_]+", text) else value


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """Reads keys as text, and other numbers and booleans as Words."""

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
    """``content`` without Words: text for settings of type text, numbers and booleans for all others."""
    if isinstance(content, dict):
        return {key: typed(value, is_text, (*at, key)) for key, value in content.items()}
    if isinstance(content, list):
        return [typed(value, is_text, (*at, "")) for value in content]
    if isinstance(content, Word):
        return content.text if is_text(at) else content.value
    return content


NULL = ("", "~", "null", "Null", "NULL")  # YAML's words for null; for settings of type text too

KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[^.\[\]]+\])*")  # a.b or a[b]


def compose(
    path: Path,
    overrides: Sequence[str],
    reserved: Collection[str],
    mistakes: list[str],
    is_text: IsText = lambda _: False,
) -> Any:
    """The content of the file at ``path``, merged with the variants and changes of ``overrides`` (key=value).

    Args:
        reserved: the keys of a recipe; no group of variants may have such a name.
        mistakes: a list to which a sentence is added for each wrong override.
        is_text: whether a setting is text, whose value is used as it is written. Other values are read as YAML.

    Raises:
        UserError: a file is missing or cannot be read, or there is no such variant.
    """
    pairs = [change.partition("=") for change in overrides]
    mistakes += [f"{change!r} is not key=value" for change in overrides if change.find("=") < 1]
    with _readable(path):
        content = _file(path, ())
        groups = set(_groups(content, str(path)))
        if both := sorted(groups & set(reserved)):
            raise UserError(
                f"the recipe {str(path)!r} has variants named {both[0]!r}, which is a setting of every recipe"
            )
        content = _choose(content, {key: value for key, _, value in pairs if key in groups}, str(path))
        for key, equals, value in pairs:
            if key and equals and key not in groups:
                content = merge(content, _change(key, value, is_text, mistakes))
        return typed(_resolve(content), is_text)


def _change(key: str, value: str, is_text: IsText, mistakes: list[str]) -> dict[str, Any]:
    """One change of the command line as nested dicts. A wrong change gives {} and adds a sentence to ``mistakes``."""
    names = re.findall(r"[^.\[\]]+", key)
    if not KEY.fullmatch(key):
        mistakes.append(f"{key!r} is not a key; a key is names joined by dots, such as train.steps")
        return {}
    if "${" in value or value == "???":
        mistakes.append(f"{key}: {value!r} refers to another value, which only files may do; write the value itself")
        return {}
    try:
        content: Any = value if value not in NULL and is_text(names) else read(value)
    except YAMLError:
        mistakes.append(f"{key}: {value!r} is not a YAML value: a number, a text, [a list] or {{a: mapping}}")
        return {}
    for name in reversed(names):
        content = {name: content}
    return content


def merge(content: Any, changes: Any) -> Any:
    """``content`` with ``changes`` applied: mappings are merged, other values are replaced."""
    if isinstance(content, dict) and isinstance(changes, dict):
        return content | {key: merge(content.get(key), value) for key, value in changes.items()}
    if {type(content), type(changes)} == {dict, list}:
        raise ValueError(f"Cannot merge incompatible values, {content} and {changes}")
    return changes


def _resolve(content: dict[str, Any]) -> Any:
    """``content`` in which each ``${key}`` is replaced by the value of that key."""
    return OmegaConf.to_container(OmegaConf.create(content, flags={"allow_objects": True}), resolve=True)


def combinations(path: Path) -> list[dict[str, str]]:
    """Every combination of variants of the file at ``path``, as ``{group: name}``, the default first.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    with _readable(path):
        content = _file(path, ())
        list(_groups(content, str(path)))  # raises if variants are not mappings
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
    """The content of a file, merged over its base."""
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
    """The name of every group of variants, including groups inside variants.

    Raises:
        UserError: the variants are not mappings of mappings.
    """
    groups = content.get("variants") or {}
    if not isinstance(groups, dict) or not all(map(_are_variants, groups.values())):
        raise UserError(
            f"the recipe {where!r}: variants: {groups} is not a mapping such as {{group: {{name: {{setting: value}}}}}}"
        )
    for group, variants in groups.items():
        yield group
        for changes in variants.values():
            yield from _groups(changes or {}, where)


def _are_variants(variants: Any) -> bool:
    """Whether this is a mapping with at least one name, whose values are mappings or null."""
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
    """Turn errors of YAML and OmegaConf into a UserError about the file at ``path``."""
    try:
        yield
    except UserError:
        raise
    except (YAMLError, OmegaConfBaseException, OSError, TypeError, ValueError) as error:
        raise UserError(f"the recipe {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
