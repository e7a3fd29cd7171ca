"""Labels: their classes, and what a label that is text becomes in shards: a class, several classes, or a number.

A sample has one class (its number), several (a list of numbers in rising order, perhaps empty), or a quantity.
"""

from __future__ import annotations

import json
import math
import re
from ast import literal_eval
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.common.errors import UserError, nearest
from scaleup.data.lists import read_classes

Label = int | list[int] | float  # of a sample: the number of its class, those of its classes, or a quantity

ONE, SEVERAL, NUMBER = "one", "several", "number"
KINDS = (ONE, SEVERAL, NUMBER)  # of labels
LOSSES = {ONE: ("softmax", "sigmoid"), SEVERAL: ("sigmoid",), NUMBER: ("l2", "l1")}  # that learn them
WORDS = {ONE: "one class", SEVERAL: "a list of classes", NUMBER: "a number"}
QUANTITY = ["value"]  # stands for the class names of a label that is a number

MAX_CLASSES = 100_000  # limit for labels that are numbers, if there is no list of class names
NO_LABEL = {"", "-1", "-1.0", "nan"}
NO_NUMBER = {"none", "null", "na", "n/a"}  # mean "no label" if labels are numbers; else they are names like any other
DIGITS = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
LISTED = re.compile(r"\d+(\s*[,;|]\s*\d+)+")  # numbers in one label, as sets with several labels a sample have them
PLAIN = (str, int, float)  # values of JSON that are labels
SPACED = re.compile(r"-?\d+([\s,]+-?\d+)+")


def number_of(label: str) -> int | None:
    """The class number that a label such as 3, 03 or 3.0 stands for; None if it is not a class number."""
    match = re.fullmatch(r"\+?(\d+)(?:\.0*)?", label)
    return int(match[1]) if match else None


def class_names(labels: Iterable[str]) -> list[str]:
    """The class names from the labels: numbers in order, then words. If all are numbers, every number up to the
    largest.

    Empty text, -1 and nan mean "no label". If all other labels are numbers, none, null and na mean it too.
    """
    names = {label for label in labels if label.lower() not in NO_LABEL}
    words = {label for label in names if not DIGITS.fullmatch(label)}
    numbers = {number for label in names if (number := number_of(label)) is not None}
    several = {word for word in words if is_list(word)}
    if (numbers or several) and all(word.lower() in NO_NUMBER for word in words - several):
        return [str(number) for number in range(min(max(numbers, default=-1) + 1, MAX_CLASSES))]
    return sorted(names, key=lambda label: (number_of(label) is None, number_of(label) or 0, label))


def class_name(label: str, names: list[str], known: Container[str]) -> str | None:
    """The class of ``label``: it is one of ``names`` (the set ``known``), or the number of one. None if it is
    neither."""
    if label in known:
        return label
    number = number_of(label)
    return names[number] if number is not None and number < len(names) else None


def unknown(label: str, names: list[str]) -> str:
    """A sentence that says why ``label`` is not a class."""
    if label.lower() in NO_LABEL:
        return f"label '{label}' means that there is no label" if label else "has no label"
    if is_list(label):
        return f"label '{label[:200]}' is several labels; a sample must have one, unless you set --labels several"
    return f"label '{label[:200]}' is not one of the {len(names)} classes{nearest(label[:200], names)}"


def is_list(text: str) -> bool:
    """Whether a text is numbers of several classes, or a JSON list."""
    return bool(LISTED.fullmatch(text)) or _json_list(text) is not None


def _json_list(text: str) -> list[Any] | None:
    """The content of a list as JSON or Python writes it; None if the text is none."""
    for read in (json.loads, literal_eval) if text.startswith("[") else ():
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            content = read(text)
            return content if isinstance(content, list) else None
    return None


def explain_value(label: Any) -> str:
    """Why a value of JSON is no label; empty if it is text, a number, null, or a list of these."""
    for part in label if isinstance(label, list) else [label]:
        if part is not None and type(part) not in PLAIN:
            said = json.dumps(part, default=repr, skipkeys=True)[:80]  # Python writes lists of more than JSON has
            return f"its label has {said}; allowed are text, a number, and a list of these"
    return ""


def split_label(text: str) -> list[str]:
    """The labels in a text: a JSON list, or divided by ``;`` or ``|``, numbers by commas or spaces too. What means "no
    label" is left out, as are null and what :func:`explain_value` explains."""
    parts = _json_list(text)
    if parts is None:
        parts = re.split(r"[\s,]+" if SPACED.fullmatch(text) else r"[;|]", text)
    parts = [str(part) for part in parts if type(part) in PLAIN]
    return [part for each in parts if (part := each.strip()).lower() not in NO_LABEL]


class Labelling:
    """How the labels of a source, which are text, become labels of shards.

    Args:
        kind: one of ``KINDS``.
        texts: all labels of the source, from which classes are named.
        classes: a file of class names (:func:`scaleup.data.lists.read_classes`), or their names, in place of these.
    """

    def __init__(self, kind: str, texts: Iterable[str], classes: str | Path | list[str] | None = None) -> None:
        if kind == NUMBER and classes:
            raise UserError(f"labels that are numbers have no classes, but a file of class names is given: '{classes}'")
        self.kind = kind
        if kind == NUMBER:
            self.classes = list(QUANTITY)
        elif classes:
            self.classes = classes if isinstance(classes, list) else read_classes(classes)
        else:
            self.classes = class_names(text for each in texts for text in self._parts(each))
        self._numbers = {name: number for number, name in enumerate(self.classes)}

    @property
    def kinds(self) -> dict[str, str]:
        """What an index says of the label, which is called ``label``."""
        return {} if self.kind == ONE else {"label": self.kind}

    def value(self, text: str) -> Label:
        """The label for the shards; ValueError with a sentence if the text is none."""
        if self.kind == NUMBER:
            return _quantity(text)
        if self.kind == SEVERAL and (wrong := explain_value(_json_list(text))):
            raise ValueError(wrong)
        numbers = [self._numbers[self.name(part)] for part in self._parts(text)]
        return sorted(set(numbers)) if self.kind == SEVERAL else numbers[0]

    def name(self, text: str) -> str:
        """The class of one label; ValueError with a sentence if there is none."""
        name = class_name(text, self.classes, self._numbers)
        if name is None:
            raise ValueError(unknown(text, self.classes))
        return self.classes[self._numbers[name]]  # one text for all samples of the class

    def _parts(self, text: str) -> list[str]:
        return split_label(text) if self.kind == SEVERAL else [text]


def _quantity(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"label '{text[:200]}' is not a number" if text else "has no label") from None
    if not _is_finite(number):
        raise ValueError(f"label '{text}' is not a finite number")
    return number


def _is_finite(number: float) -> bool:
    """Whether it is finite in float32, as batches hold it."""
    return abs(number) <= float(np.finfo(np.float32).max)


def refuse_loss(head: str, loss: str, label: str, kind: str, classes: Sequence[str], place: str) -> None:
    """UserError if a head with this loss cannot learn a label of this kind, or if there is no class to learn."""
    if not classes:
        raise UserError(f"head {head!r} has nothing to learn: label {label!r} of '{place}' has no classes")
    if loss not in LOSSES[kind]:
        other = " or ".join(f"heads.{head}.loss={loss}" for loss in LOSSES[kind])
        raise UserError(
            f"head {head!r} has loss {loss}, but label {label!r} of '{place}' is {WORDS[kind]}; allowed is {other}"
        )


def explain_label(label: Any, kind: str, count: int) -> str:
    """What is wrong with a label of shards that has so many classes; empty if it is one of its kind."""
    if kind == NUMBER:
        number = isinstance(label, int | float) and not isinstance(label, bool)
        return "" if number and _is_finite(label) else f"is {label}, which is not a finite number"
    if kind == SEVERAL and not isinstance(label, list):
        return f"is {label}, but must be a list"
    numbers = label if kind == SEVERAL else [label]
    wrong = [number for number in numbers if not isinstance(number, int) or not 0 <= number < count]
    if kind == ONE:
        return f"is {label}, but there are {count} classes" if wrong else ""
    if wrong:
        return f"has {wrong[0]}, but there are {count} classes"
    return f"is {label}, which names a class twice" if len(set(numbers)) < len(numbers) else ""


def as_array(labels: Sequence[Any], kind: str) -> np.ndarray:
    """One label of all samples: int64 or float64 (N,), or for several classes an array (N,) of tuples."""
    if kind != SEVERAL:
        return np.array(labels, dtype=np.float64 if kind == NUMBER else np.int64)
    array = np.empty(len(labels), dtype=object)
    for row, label in enumerate(labels):
        array[row] = tuple(label)
    return array


PART = 2**18  # labels that are read together
POWERS = {"sqrt": 0.5, "full": 1.0}  # how strongly rare classes are balanced: of their inverse counts


def class_counts(labels: Any, classes: int, factors: Callable[[int, int], np.ndarray] | None = None) -> np.ndarray:
    """How many samples have each class: (C,), from such an array or what is read as one, in parts.

    Args:
        factors: how often the samples from one number to another count.

    Raises:
        UserError: a label is none of the classes.
    """
    counts = np.zeros(classes, dtype=int if factors is None else float)
    for begin in range(0, len(labels), PART):
        end = min(begin + PART, len(labels))
        part, weights = labels[begin:end], None if factors is None else factors(begin, end)
        if labels.dtype == object:
            weights = None if weights is None else np.repeat(weights, [len(label) for label in part])
            part = np.array([number for label in part for number in label], dtype=np.int64)
        for wrong in part[(part < 0) | (part >= classes)]:
            where = "tools/check_shards.py names the samples"
            raise UserError(f"label {wrong} is not one of {classes} classes, so an index of shards is damaged; {where}")
        counts += np.bincount(part, weights, minlength=classes)
    return counts


def mean_and_deviation(columns: Sequence[Any]) -> tuple[float, float]:
    """Of the numbers in arrays (N,), or in what is read as one, together; read in parts. The deviation is 0 where all
    are the same."""

    def parts() -> Iterator[np.ndarray]:
        for column in columns:
            yield from (np.asarray(column[begin : begin + PART]) for begin in range(0, len(column), PART))

    count, first = sum(map(len, columns)), next(parts())[0]
    if all((part == first).all() for part in parts()):
        return float(first), 0.0
    mean = sum(part.sum() for part in parts()) / count
    return mean, math.sqrt(sum(((part - mean) ** 2).sum() for part in parts()) / count)


def as_label(entry: Any) -> Label:
    """The label in an entry of such an array."""
    return list(entry) if isinstance(entry, tuple) else entry.item()
