"""What the values of a recipe may be, one line a setting; ``*`` stands for any entry of a mapping."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scaleup.errors import nearest


class Rule(NamedTuple):
    allowed: str  # in words
    holds: Callable[[Any], bool]  # of a value of the right type
    names: tuple[str, ...] = ()  # where names are allowed, so that the nearest can be said

    def mistake(self, path: str, value: Any) -> str:
        return f"{path}: {value!r} is not {self.allowed}{nearest(str(value), self.names)}"


def between(low: float, high: float = math.inf, kind: str = "a number") -> Rule:
    words = f"between {low} and {high}" if high < math.inf else f"of at least {low}"
    return Rule(f"{kind} {words}", lambda value: low <= value <= high and math.isfinite(value))


def whole(low: int, high: float = math.inf) -> Rule:
    return between(low, high, "a whole number")


def above(low: float) -> Rule:
    return Rule(f"a number above {low}", lambda value: low < value < math.inf)


def one_of(*allowed: Any) -> Rule:
    names = tuple(repr(value) for value in allowed)
    return Rule(f"one of {', '.join(names)}", lambda value: value in allowed, tuple(str(value) for value in allowed))


def listing(words: str, rule: Rule) -> Rule:
    """A list of as many numbers as ``words`` names, such as ``[t, h, w]``, each of which obeys ``rule``."""
    count = words.count(",") + 1

    def holds(values: list) -> bool:
        return len(values) == count and all(isinstance(value, int | float) and rule.holds(value) for value in values)

    return Rule(f"a list {words}, each {rule.allowed}", holds)


def ordered(rule: Rule) -> Rule:
    pair = listing("[low, high]", rule)
    return Rule(f"{pair.allowed}, low <= high", lambda values: pair.holds(values) and values[0] <= values[1])


def is_name(key: str) -> bool:
    return key.isascii() and key.replace("_", "").replace("-", "").isalnum()


NAME = Rule("a name made of letters, digits, '_' and '-'", is_name)
SHARDS = Rule("a directory of shards or its address", lambda value: "://" in value or Path(value).is_dir())
HEADS = Rule("a mapping of head names to label names", lambda value: all(map(is_name, value)))
GATE = one_of(False, True, "channel")
KINDS = {"str": "a text", "bool": "true or false"}  # in words; other settings have rules
RULES: dict[str, Rule] = {
    "seed": whole(0),
    "model.backbone.fresh_blocks": whole(0),
    "model.input.frames": whole(1),
    "model.input.size": listing("[height, width]", whole(1)),
    "model.input.fps": above(0),
    "model.input.mean": listing("[red, green, blue]", between(0, 1)),
    "model.input.std": listing("[red, green, blue]", above(0)),
    "model.frames.stride": whole(1),
    "model.frames.offset": whole(0),
    "model.tubes.*.kernel": listing("[t, h, w]", whole(1)),
    "model.tubes.*.stride": listing("[t, h, w]", whole(1)),
    "model.tubes.*.offset": listing("[t, h, w]", whole(0)),
    "model.tubes.*.fold": listing("[t, h, w]", whole(1)),
    "model.tubes.*.channels": whole(1),
    "model.interpolate": listing("[t, h, w]", whole(1)),
    "model.positions.kind": one_of("cosine", "cosine_no_stride", "learned", "relative", "none", "backbone"),
    "model.positions.amplitude": above(0),
    "model.adapter.kind": one_of("lora", "dora", "ia3"),
    "model.adapter.rank": whole(1),
    "model.adapter.alpha": above(0),
    "model.gate": GATE,
    "data.batch": whole(1),
    "data.workers": whole(0),
    "data.window": whole(1),
    "data.max_bad": between(0, 1),
    "data.train.*.shards": SHARDS,
    "data.train.*.heads": HEADS,
    "data.train.*.weight": above(0),
    "data.train.*.augment.crop_scale": ordered(between(0.01, 1)),
    "data.train.*.augment.crop_ratio": ordered(above(0)),
    "data.train.*.augment.randaugment_layers": whole(0),
    "data.train.*.augment.randaugment_magnitude": whole(0, 30),
    "data.valid.shards": SHARDS,
    "data.valid.heads": HEADS,
    "arm.frozen_depth": whole(0),
    "arm.gate": GATE,
    "arm.adapt": one_of("full", "lora", "dora", "ia3", "none"),
    "arm.lora_rank": whole(1),
    "arm.lora_alpha": above(0),
    "arm.precision": one_of("float32", "bfloat16"),
    "arm.lr": above(0),
    "arm.gate_lr": above(0),
    "arm.weight_decay": between(0),
    "arm.clip": between(0),
    "arm.steps": whole(1),
    "arm.warmup": whole(0),
    "arm.patience": whole(0),
    "trunk.precision": one_of("float32", "bfloat16", "float16", "int8", "auto"),
    "trunk.placement": one_of("device", "host", "disk"),
    "trunk.cache": Rule(
        "a directory with a cache or its address", lambda value: "://" in value or Path(value).is_dir()
    ),
    "train.steps": whole(1),
    "train.optimizer": one_of("adamw", "adam"),
    "train.betas": listing("[beta1, beta2]", between(0, 0.99999)),
    "train.warmup": whole(0),
    "train.label_smoothing": between(0, 1),
    "train.mixup": between(0),
    "train.cutmix": between(0),
    "train.kernels": one_of("library", "lean", "fast", "auto"),
    "train.zero_stage": Rule(
        "0, 1 or 2 (3 would take apart the frozen weights that arms share with the trunk)",
        lambda value: value in (0, 1, 2),
    ),
    "train.accumulate": whole(1),
    "train.log_every": whole(1),
    "train.save_every": whole(0),
    "train.keep": whole(1),
    "train.valid_every": whole(0),
}


_BAD = object()  # stands for a value that does not fit


@cache
def _alone(schema: type, key: str) -> Any:
    """The field ``key`` of a dataclass as a schema of its own: OmegaConf is slow with many."""
    return OmegaConf.structured(make_dataclass("Setting", [(key, get_type_hints(schema)[key])]))


def is_text(schema: Any, path: Sequence[str]) -> bool:
    """Whether the setting at ``path`` below ``schema`` (a dataclass, or a type of values) is text alone."""
    kinds = [kind for kind in get_args(schema) if kind is not type(None)] or [schema]
    if not path:
        return kinds == [str]
    if get_origin(schema) in (dict, list):
        return is_text(kinds[-1], path[1:])
    settings = {item.name: (kind, item) for kind in filter(is_dataclass, kinds) for item in fields(kind)}
    if path[0] not in settings:
        return False
    kind, item = settings[path[0]]
    if "changes" in item.metadata:
        return is_text(item.metadata["changes"], path[2:])
    if "values" in item.metadata:
        return len(path) == 3 and is_text(item.metadata["values"], path[1:2])
    return is_text(get_type_hints(kind)[item.name], path[1:])


class Reader:
    """Holds settings against a dataclass: keeps what fits, collects a sentence for every mistake.

    ``at`` is the key path of a value, ``rule`` the name of its rule in RULES.
    """

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    def settings(self, schema: type, given: Any, at: str = "", rule: str = "") -> dict[str, Any]:
        """The settings in ``given`` that fit the dataclass ``schema``."""
        if not isinstance(given, dict):
            self.mistakes.append(f"{at.rstrip('.') or 'recipe'}: {given!r} is not a mapping of settings")
            return {}
        known = {item.name: item for item in fields(schema)}
        valid = {}
        for key, value in given.items():
            if key in known:
                valid[key] = self._value(schema, known[key], value, f"{at}{key}", f"{rule}{key}")
            else:
                near = nearest(str(key), known) or f"; known: {', '.join(known)}"
                self.mistakes.append(f"{at}{key}: unknown key{near}")
        return {key: value for key, value in valid.items() if value is not _BAD}

    def _value(self, schema: type, item: Field, value: Any, at: str, rule: str) -> Any:
        kind = get_type_hints(schema)[item.name]
        if type(None) in get_args(kind):
            if value is None:
                return None
            kind = next(filter(is_dataclass, get_args(kind)), kind)
        if is_dataclass(kind):
            return self._entry(cast(type, kind), value, f"{at}.", f"{rule}.")
        if "changes" in item.metadata:
            read = partial(
                self.settings, item.metadata["changes"], rule=f"{item.metadata['changes'].__name__.lower()}."
            )
            return self._entries(value, at, read)
        if "values" in item.metadata:
            return self._lists(item.metadata["values"], value, at)
        if get_origin(kind) is dict and is_dataclass(get_args(kind)[1]):
            return self._entries(value, at, partial(self._entry, get_args(kind)[1], rule=f"{rule}.*."))
        return self._leaf(schema, item.name, value, at, rule)

    def _entries(self, given: Any, at: str, read: Callable[..., Any]) -> Any:
        """A mapping of free names to settings; an entry that is null is left out."""
        if not isinstance(given, dict):
            self.mistakes.append(f"{at}: {given!r} is not a mapping of names to settings")
            return _BAD
        self.mistakes += [NAME.mistake(at, name) for name in given if not is_name(str(name))]
        kept = {str(name): value for name, value in given.items() if value is not None}
        valid = {name: read(value, at=f"{at}.{name}.") for name, value in kept.items()}
        return {name: value for name, value in valid.items() if value is not _BAD}

    def _lists(self, schema: type, given: Any, at: str) -> Any:
        """A mapping of settings to lists of values."""
        if not isinstance(given, dict):
            self.mistakes.append(f"{at}: {given!r} is not a mapping of settings to lists of values")
            return _BAD
        return {key: self._list(schema, key, values, f"{at}.") for key, values in given.items()}

    def _list(self, schema: type, key: str, values: Any, at: str) -> list[Any]:
        """The values that fit the setting ``key`` of a dataclass."""
        if not isinstance(values, list) or not values:
            self.mistakes.append(f"{at}{key}: {values!r} is not a list of values")
            return []
        read = [self.settings(schema, {key: value}, at, f"{schema.__name__.lower()}.") for value in values]
        found = [value for each in read for value in each.values()]
        self.mistakes += [f"{at}{key}: {value!r} is listed twice" for value in found if found.count(value) > 1]
        self.mistakes = list(dict.fromkeys(self.mistakes))  # one mistake may be of several values
        return found

    def _entry(self, schema: type, given: Any, at: str, rule: str) -> Any:
        """Settings of which whatever has no default must be there."""
        valid = self.settings(schema, given, at, rule)
        required = [item.name for item in fields(schema) if item.default is MISSING is item.default_factory]
        if isinstance(given, dict):
            self.mistakes += [f"{at}{name}: is missing" for name in required if name not in given]
        return valid if all(name in valid for name in required) else _BAD

    def _leaf(self, schema: type, key: str, value: Any, at: str, rule: str) -> Any:
        """One value: OmegaConf converts it to the type of its field, its rule says what is allowed."""
        kind = schema.__annotations__[key]
        limits = RULES.get(rule) or Rule(KINDS.get(kind, f"of the type {kind}"), lambda value: True)
        if schema.__annotations__[key] == "float" and isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
            value = float(value[:-1]) / 100
        try:
            typed = OmegaConf.to_container(OmegaConf.merge(_alone(schema, key), {key: value}))
        except (OmegaConfBaseException, TypeError):  # which it raises of a mapping for a list
            self.mistakes.append(limits.mistake(at, value))
            return _BAD
        assert isinstance(typed, dict)
        if typed[key] is None or limits.holds(typed[key]):
            return typed[key]
        self.mistakes.append(limits.mistake(at, value))
        return _BAD
