"""The demo's report: its rows, and the table, page and plot that show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scaleup.common.text import markdown
from scaleup.evaluation.accuracy import Evaluation


@dataclass
class Row:
    """A line of the table. Accuracies are shares of 1."""

    name: str
    kind: str  # small | adapted
    frozen_depth: int
    gate: bool
    alpha: float | None
    tubes: str  # none | trained | transplanted | random
    trained_parameters: int
    step_gflop: float
    seconds_share: float  # seconds of a step / those of the slowest arm of the same run
    shape: float
    motion: float


@dataclass(kw_only=True)
class Best(Evaluation):
    """The best arm with frozen tubes, and its accuracy with many views."""

    arm: str
    directory: str


@dataclass
class Report:
    """The content of ``report.json``."""

    seconds: float
    seed: int
    chance: dict[str, float]
    views: str  # of the rows
    rows: list[Row]
    best: Best
    image_max_abs_diff: float  # between the adapted model and its backbone
    reload_max_abs_diff: float  # between the exported model and the best arm
    exported_bytes: int
    transplant: dict[str, float | None]  # tube -> token_max_abs_diff


def table(report: Report) -> str:
    """The rows as a Markdown table."""
    header = ["model", "tubes", "frozen blocks", "gate alpha", "trained", "GFLOP / step", "seconds", "shape", "motion"]
    rows = []
    for row in report.rows:
        alpha = "-" if row.alpha is None else f"{row.alpha:.2f}"
        cost = f"{row.trained_parameters:,}", f"{row.step_gflop:.0f}", f"{row.seconds_share:.0%}"
        rows.append([row.name, row.tubes, row.frozen_depth, alpha, *cost, f"{row.shape:.1%}", f"{row.motion:.1%}"])
    return "\n".join(markdown(header, rows))


def readme(report: Report) -> str:
    """A short page for the run directory."""
    best = report.best
    score = ", ".join(f"{head} {value.lead:.1%}" for head, value in best.heads.items())
    return f"""# Moving shapes: a small model's tubes in a larger image ViT

{table(report)}

Chance: shape {report.chance["shape"]:.1%}, motion {report.chance["motion"]:.1%}. One view of each clip, test split.
GFLOP are planned for a step of one arm by itself. Seconds are shares of the slowest arm's seconds in the same run.
The best arm with frozen tubes on the validation split is `{best.arm}`: {score} with {best.views} views
({best.samples} videos, list {best.list_sha256[:12]}).

- The adapted model gives images the same output as its backbone: max abs diff {report.image_max_abs_diff}.
- Exported in full and reloaded: max abs diff {report.reload_max_abs_diff}.
- The whole demo took {report.seconds:.0f} s (seed {report.seed}).

`plot.png` shows accuracy and cost against frozen depth. Load the result:

```python
import scaleup
model = scaleup.load("exported")
logits = model(x, head="motion")  # x: (B, 3, 16, 32, 32), see model.preprocess
```
"""


def plot(report: Report, path: Path) -> None:
    """Plot motion accuracy and GFLOP of a step against frozen depth, for transplanted and random tubes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (accuracy, cost) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = sorted((row for row in report.rows if row.kind == "adapted"), key=lambda row: row.frozen_depth)
    for tubes, colour in (("transplanted", "tab:blue"), ("random", "tab:orange"), ("trained", "tab:green")):
        for gate, marker in ((False, "o"), (True, "^")):
            line = [row for row in rows if (row.tubes, row.gate) == (tubes, gate)]
            if line:
                depths = [row.frozen_depth for row in line]
                label = f"{tubes} tubes" + (", gated" if gate else "")
                style = {"marker": marker, "color": colour, "linestyle": "-" if len(line) > 1 else "none"}
                accuracy.plot(depths, [100 * row.motion for row in line], label=label, **style)
                cost.plot(depths, [row.step_gflop for row in line], label=label, **style)
    accuracy.axhline(100 * report.chance["motion"], color="grey", linestyle=":", label="chance")
    accuracy.set(xlabel="frozen blocks (of 6)", ylabel="motion, top-1 (%)", ylim=(0, 100), title="Accuracy")
    cost.set(xlabel="frozen blocks (of 6)", ylabel="planned GFLOP of a step", ylim=(0, None), title="Cost")
    accuracy.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
