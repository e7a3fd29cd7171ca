"""The types of a recipe's settings, with their limits, and the check of a recipe against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from functools import cache
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
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import is_typeddict

from scaleup.common.errors import nearest

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


def _no_number(choice: Any) -> Any:
    """Refuse 1 and 0, which Python would accept as True and False."""
    if isinstance(choice, int) and not isinstance(choice, bool):
        raise ValueError
    return choice


def _ordered(pair: list[float]) -> list[float]:
    if pair[0] > pair[1]:
        raise ValueError
    return pair


def _listed(names: Any) -> Any:
    """A list of names from one name, or from ``none``."""
    if names is None or names == "none":
        return []
    return [names] if isinstance(names, str) else names


def _without_nulls(entries: Any) -> Any:
    return {key: entry for key, entry in entries.items() if entry is not None} if isinstance(entries, dict) else entries


def allowed(words: str) -> WrapValidator:
    """The words for what a type allows. A mistake anywhere in the value is reported with them, for the whole value."""

    def validate(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise _mistake(words) from None

    return WrapValidator(validate)


def in_order(words: str) -> WrapValidator:
    """A mapping that keeps the order of the recipe. (pydantic would use the order of the type.)"""

    def validate(entries: Any, check: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(entries, dict):
            raise _mistake(words)
        checked = check(entries)
        return {key: checked[key] for key in entries}

    return WrapValidator(validate)


def _mistake(words: str) -> PydanticCustomError:
    return PydanticCustomError("allowed", "{words}", {"words": words})


COUNT, INDEX = "a whole number of at least 1", "a whole number of at least 0"
POSITIVE, SHARE = "a number above 0", "a number between 0 and 1"
# Strict: True is not a number, and 2.0 is not a whole number.
Whole = Annotated[int, Field(strict=True), BeforeValidator(_number)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_number)]
Count = Annotated[Whole, Field(ge=1), allowed(COUNT)]
Index = Annotated[Whole, Field(ge=0), allowed(INDEX)]
Magnitude = Annotated[Whole, Field(ge=0, le=30), allowed("a whole number between 0 and 30")]
PoolDepth = Annotated[Whole, Field(ge=1, le=4), allowed("a whole number between 1 and 4")]
Finite = Annotated[Number, allowed("a number")]
Positive = Annotated[Number, Field(gt=0), allowed(POSITIVE)]
NotNegative = Annotated[Number, Field(ge=0), allowed("a number of at least 0")]
Share = Annotated[Number, Field(ge=0, le=1), allowed(SHARE)]
Pair, Triple = Field(min_length=2, max_length=2), Field(min_length=3, max_length=3)
Lengths = Annotated[list[Count], Triple, allowed(f"a list [t, h, w], each {COUNT}")]
Offsets = Annotated[list[Index], Triple, allowed(f"a list [t, h, w], each {INDEX}")]
Size = Annotated[list[Count], Pair, allowed(f"a list [height, width], each {COUNT}")]
Mean = Annotated[list[Share], Triple, allowed(f"a list [red, green, blue], each {SHARE}")]
Std = Annotated[list[Positive], Triple, allowed(f"a list [red, green, blue], each {POSITIVE}")]
Beta = Annotated[Number, Field(ge=0, le=0.99999)]
Area = Annotated[Number, Field(ge=0.01, le=1)]
Betas = Annotated[list[Beta], Pair, allowed("a list [beta1, beta2], each a number between 0 and 0.99999")]
Ordered = AfterValidator(_ordered)
AREA = "a number between 0.01 and 1"
Areas = Annotated[list[Area], Pair, Ordered, allowed(f"a list [low, high], each {AREA}, low <= high")]
Ratios = Annotated[list[Positive], Pair, Ordered, allowed(f"a list [low, high], each {POSITIVE}, low <= high")]
Gate = Annotated[Literal[False, True, "channel"], BeforeValidator(_no_number)]
Loggers = Annotated[list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(_listed)]
Name = Annotated[str, AfterValidator(_name), allowed("a name made of letters, digits, '_' and '-'")]
Named = Annotated[dict[Name, T], BeforeValidator(_without_nulls)]  # an entry that is null is left out
Heads = Annotated[dict[Name, str], allowed("a mapping of head names to label names")]


def setting(schema: Any, path: Sequence[str | int]) -> Any:
    """The type of the setting at ``path`` below ``schema``, without its ``| None``; None if there is no such
    setting."""
    for key in path:
        kind = _plain(schema)
        schema = get_args(kind)[-1] if get_origin(kind) in (dict, list) else _settings(kind).get(str(key))
    return _plain(schema)


def is_text(schema: Any, path: Sequence[str]) -> bool:
    """Whether the setting at ``path`` below ``schema`` can only be text."""
    kind = setting(schema, path)
    return kind is str or get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))


def check(schema: type[T], content: Any) -> tuple[T | None, list[str]]:
    """``content`` as an object of the dataclass ``schema``, and a sentence for each mistake in it.

    In the object, wrong settings have their defaults. If one of them has no default, the object is None.
    """
    if not isinstance(content, dict):
        return None, [f"it is not {WORDS['dataclass_type']}"]
    mistakes: dict[str, None] = {}
    content = deepcopy(content)
    while True:
        try:
            return _adapter(schema).validate_python(content), list(mistakes)
        except ValidationError as exception:
            errors = exception.errors(include_url=False)
        mistakes = mistakes or dict.fromkeys(_sentence(schema, error) for error in errors)
        if not all(map(_wrong, errors)):
            return None, list(mistakes)
        for path in map(_wrong, errors):
            _remove(content, path)


_adapter: Callable[[Any], TypeAdapter] = cache(TypeAdapter)
WORDS = {  # pydantic's type of error -> what is allowed
    **{"string_type": "a text", "bool_type": "true or false", "bool_parsing": "true or false"},
    **{"int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number"},
    **{"list_type": "a list of values", "too_short": "a list of values"},
    **{"dataclass_type": "a mapping of settings", "dict_type": "a mapping of names to settings"},
}


def _sentence(schema: Any, error: ErrorDetails) -> str:
    """A mistake as a sentence: the path, the value, what is allowed, and the nearest allowed name."""
    path, value = error["loc"], error["input"]
    if path[-1] == "[key]":
        path = path[:-2]
    at = ".".join(key for key in path if isinstance(key, str))
    if error["type"] == "missing":
        return f"{at}: is missing"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = _settings(setting(schema, path[:-1]))
        return f"{at}: unknown key{nearest(str(path[-1]), names) or '; known: ' + ', '.join(names)}"
    kind = setting(schema, path)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    words = f"one of {', '.join(map(repr, choices))}" if choices else WORDS.get(error["type"], error["msg"])
    return f"{at}: {value!r} is not {words}{nearest(str(value), map(str, choices))}"


def _plain(kind: Any) -> Any:
    """A type without annotations and without None."""
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = next(inner for inner in get_args(kind) if inner is not type(None))
    return kind


@cache
def _settings(section: Any) -> dict[str, Any]:
    """The settings of a dataclass or of a TypedDict with their types."""
    is_section = is_dataclass(section) or is_typeddict(section)
    return get_type_hints(section, include_extras=True) if is_section else {}


def _wrong(error: ErrorDetails) -> list[str]:
    """The path of the setting to remove for an error: the wrong one, or the one in which something is missing."""
    path = [key for key in error["loc"] if isinstance(key, str) and key != "[key]"]
    return path[:-1] if error["type"] == "missing" else path


def _remove(content: Any, path: Sequence[str]) -> None:
    for key in path[:-1]:
        content = content.get(key, {})
    content.pop(path[-1], None)
