"""What a run writes down: metrics.jsonl, its loggers, the progress line, and heads that stay at chance."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from scaleup.common.errors import first_line
from scaleup.common.files import sync, write_text
from scaleup.training.loggers import Logger, open_loggers
from scaleup.training.run_inputs import flatten_keys

Entry = dict[str, Any]  # a line of metrics.jsonl, or the part of one arm


class Metrics:
    """Appends to ``out/metrics.jsonl`` at every step, and gives numbers to the loggers ``log`` at every
    ``log_every``-th, what arms were validated with (``valid``) at any.

    Every line is flushed: a run that is killed loses one line at most. What a killed run wrote of steps from ``start``
    on is taken back; ``kept`` are the lines before. A logger that fails is named and gets no more; the run goes on.
    """

    def __init__(
        self,
        out: Path,
        log_every: int,
        start: int = 0,
        log: Collection[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.log_every, path = log_every, out / "metrics.jsonl"
        entries = read_lines(path)
        last = entries[-1]["step"] if entries else -1
        self.loggers = open_loggers(log, out, start, last, settings or {})
        self.kept = [entry for entry in entries if entry["step"] < start]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in self.kept))
        self.lines = path.open("a", buffering=1)

    def log(self, entry: Entry) -> None:
        """``entry`` holds ``step`` and, nested as it likes, numbers; what is not a number goes to the lines alone."""
        self.lines.write(json.dumps(entry) + "\n")
        step, nested = entry["step"], {name: value for name, value in entry.items() if name != "step"}
        numbers = {
            path: value
            for path, value in flatten_keys(nested, "/").items()
            if isinstance(value, int | float) and (step % self.log_every == 0 or "/valid/" in path)
        }
        if numbers:
            self._call(lambda logger: logger.add(step, numbers))

    def _call(self, action: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                action(logger)
            except Exception as error:  # a full disk, a network, a service: training needs none of them
                del self.loggers[name]
                print(f"{name} gets no more metrics, training goes on: {first_line(error)}", file=sys.stderr)

    def sync(self) -> None:
        """Put the lines on the disk."""
        sync(self.lines.fileno())

    def close(self) -> None:
        self.lines.close()
        self._call(lambda logger: logger.close())


def read_lines(path: Path) -> list[Entry]:
    """The lines of a run so far; the last one of a run that was killed may be half a line, and is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            entries.append(json.loads(line))
    return entries


SHOWN = 8  # heads in a line of progress, over all arms
LATELY = 20  # steps of a head that its figures in that line are the mean of
GAP = 0.1  # of accuracy or R2 between training and validation, from which it is named
R2_MARGIN, R2_SAMPLES = 0.05, 10_000  # of a head that gives a number
JUDGED_BY = 1000  # steps after its warm-up by which an arm is judged for the first time; short ones after a quarter


@dataclass
class AtChance:
    """That a head is no better than guessing."""

    accuracy: float  # on the samples that it was judged by, a share of 1; of a number R2
    chance: float  # the share of the most frequent class
    samples: int  # that it was judged by
    steps: int  # that its arm had taken
    measure: str = "accuracy"  # accuracy | r2

    def __str__(self) -> str:
        right = f"it is right for {self.accuracy:.1%} of the last {self.samples:,} samples"
        guess = f"the most frequent class is that of {self.chance:.1%}"
        if self.measure == "r2":
            right = f"its R2 is {self.accuracy:.2f} on the last {self.samples:,} labels"
            guess = "that of their mean is 0"
        return (
            f"is still at chance after {self.steps} steps: {right}, and {guess}; look at its labels "
            "and at what augmentation does to them, try another learning rate or more steps, and of a frozen model "
            "read all tokens (arm.pool=attentive) or let more blocks train"
        )

    @property
    def briefly(self) -> str:
        if self.measure == "r2":
            return f"R2 {self.accuracy:.2f}; the mean of the labels has 0"
        return f"{self.accuracy:.1%}; the most frequent class has {self.chance:.1%}"


@dataclass
class Gap:
    """That a head is better on the samples that it learns from than on validation samples."""

    train: float  # accuracy, or R2, on the training samples of late
    valid: float  # the same on the validation samples: top-1, or R2
    steps: int  # that its arm had taken
    measure: str  # accuracy | r2

    def __str__(self) -> str:
        form = "{:.2f}" if self.measure == "r2" else "{:.1%}"
        train, valid = form.format(self.train), form.format(self.valid)
        return (
            f"learns its training samples better than others: its {'R2' if self.measure == 'r2' else 'accuracy'} is "
            f"{train} on the training samples of late, and {valid} on the validation samples, after {self.steps} steps"
            "; more clips, stronger augmentation, fewer trained blocks, or an early end (arm.patience) may help"
        )


class Recent:
    """The heads of one arm, on each dataset that they learn from.

    A head is at chance while its accuracy is at most that of always naming the most frequent class and a quarter of it
    (where that class has more than half of the samples, and a quarter of the rest). It is judged on so many samples
    that a head that guesses gets above this once in 30,000 times, again on as many new ones, and is no longer at chance
    when it has risen. A head that gives a number is at chance while R2 is at most 0.05, on 10,000 samples.

    Args:
        guesses: of each dataset and head, the share of the class that most samples have; 0 of a number.
        batch: samples of a step.
        steps, warmup: of the arm.
    """

    def __init__(
        self, arm: str, guesses: Mapping[str, Mapping[str, float]], batch: int, steps: int, warmup: int
    ) -> None:
        self.arm, self.batch, self.first = arm, batch, warmup + min((steps - warmup) // 4, JUDGED_BY)
        sets = [head for heads in guesses.values() for head in heads]
        self.heads = {
            (dataset, head): Head(head if sets.count(head) == 1 else f"{head} of {dataset}", share)
            for dataset, heads in guesses.items()
            for head, share in heads.items()
        }
        self.gaps: dict[str, Gap] = {}  # by head, those that were open at the last validation
        self._named: set[str] = set()  # heads whose gap was named

    def compare(self, steps: int, valid: Entry) -> list[str]:
        """Compare training with a validation after so many steps; returns a sentence on each gap that is found for the
        first time. Of a head that learns from several sets, the one that it does worst on counts."""
        self.gaps = {}
        for name, score in valid["heads"].items():
            heads = [head for (_, own), head in self.heads.items() if own == name and head.lately]
            if not heads:
                continue
            head = min(heads, key=lambda head: head.quality)
            other = score["r2" if head.measure == "r2" else "top1"]
            if other is None:  # no sample has a class
                continue
            if head.quality - other > max(GAP, head.deviation(other, self.batch, valid["samples"])):
                self.gaps[name] = Gap(head.quality, other, steps, head.measure)
        first = self.gaps.keys() - self._named
        self._named |= first
        return [f"head {name!r} of arm {self.arm!r} {gap}" for name, gap in self.gaps.items() if name in first]

    def add(self, step: int, dataset: str, heads: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Note a step; returns a sentence on each head that is found at chance for the first time."""
        sentences = []
        for name, measured in heads.items():
            head = self.heads[dataset, name]
            quality = head.note(measured)
            if step >= self.first and (verdict := head.judge(quality, self.batch, step + 1)):
                sentences.append(f"head {head.name!r} of arm {self.arm!r} {verdict}")
        return sentences

    @property
    def at_chance(self) -> dict[str, AtChance]:
        """The heads that were at chance when they were last judged: what a result says of them."""
        return {head.name: head.at_chance for head in self.heads.values() if head.at_chance is not None}


class Head:
    """One head on one dataset."""

    def __init__(self, name: str, chance: float) -> None:
        self.name, self.chance = name, chance
        self.lately: deque[tuple[float, float]] = deque(maxlen=LATELY)  # loss, accuracy
        self.right, self.samples = 0.0, 0  # since it was last judged
        self.at_chance: AtChance | None = None
        self.named = False  # that it is at chance
        self.margin = min(chance, 1 - chance) / 4
        self.measure = "accuracy"  # or r2, as soon as that is noted

    def note(self, measured: Mapping[str, float]) -> float:
        """Note a step; returns its accuracy, of a number R2."""
        self.measure = "r2" if "r2" in measured else "accuracy"
        self.lately.append((measured["loss"], measured[self.measure]))
        return measured[self.measure]

    def judge(self, accuracy: float, samples: int, steps: int) -> AtChance | None:
        """Count a step, and judge where there are samples enough; what it finds where it is at chance for the first
        time."""
        self.right, self.samples = self.right + accuracy * samples, self.samples + samples
        if not self._suffice():
            return None
        verdict = AtChance(self.right / self.samples, self.chance, self.samples, steps, self.measure)
        self.right, self.samples = 0.0, 0
        margin = R2_MARGIN if self.measure == "r2" else self.margin
        self.at_chance = verdict if verdict.accuracy <= self.chance + margin else None
        first, self.named = not self.named, self.named or self.at_chance is not None
        return self.at_chance if first else None

    @property
    def quality(self) -> float:
        """Accuracy, of a number R2, of late."""
        return fmean(quality for _, quality in self.lately)

    def deviation(self, valid: float, batch: int, samples: int) -> float:
        """Four standard deviations of the difference of two such measures: of late, and on validation samples."""
        inverse = 1 / (len(self.lately) * batch) + 1 / samples
        mean = (self.quality + valid) / 2
        variance = 2 * (1 - mean) ** 2 if self.measure == "r2" else mean * (1 - mean)
        return 4 * (variance * inverse) ** 0.5

    def _suffice(self) -> bool:
        """Whether the samples are enough to judge by."""
        if self.measure == "r2":
            return self.samples >= R2_SAMPLES
        return self.samples * self.margin**2 >= 16 * self.chance * (1 - self.chance) > 0  # 4 deviations

    def __str__(self) -> str:
        loss, quality = fmean(loss for loss, _ in self.lately), self.quality
        return f"{self.name} {loss:.2f} " + (f"R2 {quality:.2f}" if self.measure == "r2" else f"{quality:.0%}")


def line(arms: Iterable[Recent]) -> str:
    """Loss and accuracy of each head in a line of progress: ``last1 shape 0.31 92%, motion 1.80 14%; last2 ...``."""
    parts, room = [], SHOWN
    for arm in arms:
        heads = [str(head) for head in arm.heads.values() if head.lately]
        parts += [f"{arm.arm} {', '.join(heads[:room])}"] if room else []
        if len(heads) > room:
            return "; ".join(parts) + ", ..."
        room -= len(heads)
    return "; ".join(parts)
