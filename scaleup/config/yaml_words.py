"""YAML whose numbers and truth values remember how they were written: of a setting that is text, ``007`` is no 7."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from omegaconf.basecontainer import get_yaml_loader  # type: ignore[attr-defined]  # its reading of YAML, not PyYAML's

IsText = Callable[[Sequence[str]], bool]  # whether the setting at a key path is text
TEXT = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG


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

    def construct_document(self, node: yaml.Node) -> Any:
        _name_keys(node)
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        return Word(node.value, value) if isinstance(value, bool | int | float) else value


def _name_keys(root: yaml.Node) -> None:
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key, _ in pairs:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = TEXT
        inside = [each for pair in pairs for each in pair]
        inside += node.value if isinstance(node, yaml.SequenceNode) else []
        waiting += [each for each in inside if id(each) not in seen]
        seen |= set(map(id, inside))


def read(text: str) -> Any:
    """The content of a YAML document; raises YAMLError."""
    return yaml.load(text, _Loader)  # noqa: S506  a safe loader


def settled(content: Any, is_text: IsText, at: tuple[str, ...] = ()) -> Any:
    """``content`` with text where a setting is text, numbers and truth values elsewhere."""
    if isinstance(content, dict):
        return {key: settled(value, is_text, (*at, key)) for key, value in content.items()}
    if isinstance(content, list):
        return [settled(value, is_text, (*at, "")) for value in content]
    if isinstance(content, Word):
        return content.text if is_text(at) else content.value
    return content
