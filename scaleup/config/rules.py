"""What the values of a recipe may be: types with limits for its dataclasses, and the check of content against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from scaleup.errors import nearest

T = TypeVar("T")


def _number(value: Any) -> Any:
    """A number written as text ("2e-3", "2.5%")."""
    if not isinstance(value, str):
        return value
    if value.endswith("%"):
        return float(value[:-1]) / 100
    return int(value) if value.isdecimal() else float(value)


def is_name(key: str) -> bool:
    return key.isascii() and key.replace("_", "").replace("-", "").isalnum()


def _name(key: str) -> str:
    if not is_name(key):
        raise ValueError
    return key


def _directory(place: str) -> str:
    if "://" not in place and not Path(place).is_dir():
        raise ValueError
    return place


def _no_number(choice: Any) -> Any:
    """1 is not True, which equals it."""
    if isinstance(choice, int) and not isinstance(choice, bool):
        raise ValueError
    return choice


def _ordered(pair: list[float]) -> list[float]:
    if pair[0] > pair[1]:
        raise ValueError
    return pair


def _without_nulls(entries: Any) -> Any:
    return {key: entry for key, entry in entries.items() if entry is not None} if isinstance(entries, dict) else entries


def _in_order(entries: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """The order of a grid is that of its arms; pydantic's is that of the type."""
    checked = check(entries)
    return {key: checked[key] for key in entries}


COUNT, INDEX = "a whole number of at least 1", "a whole number of at least 0"
POSITIVE, SHARE = "a number above 0", "a number between 0 and 1"
# What is allowed stands in words in the description. Strict: True is no number, 2.0 is not whole.
Whole = Annotated[int, Field(strict=True), BeforeValidator(_number)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_number)]
Count = Annotated[Whole, Field(ge=1, description=COUNT)]
Index = Annotated[Whole, Field(ge=0, description=INDEX)]
Magnitude = Annotated[Whole, Field(ge=0, le=30, description="a whole number between 0 and 30")]
Positive = Annotated[Number, Field(gt=0, description=POSITIVE)]
NotNegative = Annotated[Number, Field(ge=0, description="a number of at least 0")]
Share = Annotated[Number, Field(ge=0, le=1, description=SHARE)]
Lengths = Annotated[list[Count], Field(min_length=3, max_length=3, description=f"a list [t, h, w], each {COUNT}")]
Offsets = Annotated[list[Index], Field(min_length=3, max_length=3, description=f"a list [t, h, w], each {INDEX}")]
Size = Annotated[list[Count], Field(min_length=2, max_length=2, description=f"a list [height, width], each {COUNT}")]
Mean = Annotated[list[Share], Field(min_length=3, max_length=3, description=f"a list [red, green, blue], each {SHARE}")]
Std = Annotated[
    list[Positive], Field(min_length=3, max_length=3, description=f"a list [red, green, blue], each {POSITIVE}")
]
Betas = Annotated[
    list[Annotated[Number, Field(ge=0, le=0.99999)]],
    Field(min_length=2, max_length=2, description="a list [beta1, beta2], each a number between 0 and 0.99999"),
]
Areas = Annotated[
    list[Annotated[Number, Field(ge=0.01, le=1)]],
    AfterValidator(_ordered),
    Field(min_length=2, max_length=2, description="a list [low, high], each a number between 0.01 and 1, low <= high"),
]
Ratios = Annotated[
    list[Positive],
    AfterValidator(_ordered),
    Field(min_length=2, max_length=2, description=f"a list [low, high], each {POSITIVE}, low <= high"),
]
Gate = Annotated[Literal[False, True, "channel"], BeforeValidator(_no_number)]
Name = Annotated[str, AfterValidator(_name), Field(description="a name made of letters, digits, '_' and '-'")]
Named = Annotated[dict[Name, T], BeforeValidator(_without_nulls)]  # an entry that is null is left out
Heads = Annotated[dict[Name, str], Field(description="a mapping of head names to label names")]
Shards = Annotated[str, AfterValidator(_directory), Field(description="a directory of shards or its address")]
Cache = Annotated[str, AfterValidator(_directory), Field(description="a directory with a cache or its address")]
InOrder = WrapValidator(_in_order)


def setting(schema: Any, path: Sequence[str]) -> Any:
    """The type of the setting at ``path`` below ``schema``; None where there is none."""
    for key in path:
        schema = _entry(schema, key)
    return schema


def is_text(schema: Any, path: Sequence[str]) -> bool:
    """Whether the setting at ``path`` below ``schema`` is text alone."""
    kind, _ = _unwrap(setting(schema, path))
    return kind is str or get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))


def check(schema: type[T], content: Any) -> tuple[T | None, list[str]]:
    """``content`` as an object of the dataclass ``schema``, and a sentence for each mistake in it.

    Settings that are wrong have their defaults in the object; it is None where one has no default.
    """
    mistakes: dict[str, None] = {}
    content = deepcopy(content)
    while True:
        try:
            return _adapter(schema).validate_python(content), list(mistakes)
        except ValidationError as exception:
            errors = exception.errors(include_url=False)
        mistakes = mistakes or dict.fromkeys(_sentence(schema, content, error) for error in errors)
        if not all(map(_wrong, errors)):
            return None, list(mistakes)
        for path in map(_wrong, errors):
            _remove(content, path)


_adapter: Callable[[Any], TypeAdapter] = cache(TypeAdapter)


def _sentence(schema: Any, content: Any, error: ErrorDetails) -> str:
    """What is wrong, with its path, what is allowed, and the nearest of the names that are."""
    *above, last = path = error["loc"]
    if error["type"] == "missing":
        return f"{_dotted(path)}: is missing"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = _settings(_at(schema, content, above)[1])
        return f"{_dotted(path)}: unknown key{nearest(str(last), names) or '; known: ' + ', '.join(names)}"
    at, kind, value = _at(schema, content, above[:-1] if last == "[key]" else path)
    plain, words = _unwrap(kind)
    if last == "[key]" and not words:
        value, (plain, words) = above[-1], _unwrap(get_args(plain)[0])
    choices = map(str, get_args(plain)) if get_origin(plain) is Literal else ()
    return f"{_dotted(at)}: {value!r} is not {words or _in_words(plain)}{nearest(str(value), choices)}"


def _at(schema: Any, content: Any, path: Sequence[str | int]) -> tuple[Sequence[str | int], Any, Any]:
    """Path, type and value of the setting at ``path``; of a list or mapping that a description is about, as a whole."""
    for depth, key in enumerate(path):
        if _unwrap(schema)[1] and not _settings(schema):
            return path[:depth], schema, content
        schema, content = _entry(schema, key), content[key]
    return path, schema, content


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(key for key in path if isinstance(key, str))


def _in_words(kind: Any) -> str:
    """What is allowed by a type that has no description."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if _settings(kind):
        return "a mapping of settings"
    words = {str: "a text", bool: "true or false", list: "a list of values", dict: "a mapping of names to settings"}
    return words[get_origin(kind) or kind]


def _unwrap(kind: Any) -> tuple[Any, str]:
    """A type without annotations and without None; its description, or an empty text."""
    words = ""
    while get_origin(kind) in (Annotated, Union, UnionType):
        extras = getattr(kind, "__metadata__", ())
        descriptions = [extra.description for extra in extras if getattr(extra, "description", None)]
        words = words or (descriptions[-1] if descriptions else "")  # the last is of the narrowest type
        kind = next(inner for inner in get_args(kind) if inner is not type(None))
    return kind, words


def _settings(kind: Any) -> dict[str, Any]:
    """The settings of a dataclass or of a TypedDict with their types."""
    plain, _ = _unwrap(kind)
    return _hints(plain) if is_dataclass(plain) or is_typeddict(plain) else {}


@cache
def _hints(section: Any) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)  # slow


def _entry(kind: Any, key: str | int) -> Any:
    """The type of what stands under a key."""
    plain, _ = _unwrap(kind)
    return get_args(plain)[-1] if get_origin(plain) in (dict, list) else _settings(plain).get(str(key))


def _wrong(error: ErrorDetails) -> list[str]:
    """The path of the setting to leave out for an error: what is wrong, or what has a part missing."""
    path = [key for key in error["loc"] if isinstance(key, str) and key != "[key]"]
    return path[:-1] if error["type"] == "missing" else path


def _remove(content: Any, path: Sequence[str]) -> None:
    for key in path[:-1]:
        content = content.get(key, {})
    content.pop(path[-1], None)
