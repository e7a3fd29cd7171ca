"""Training, where a device without free memory is a UserError: which part takes what by the plan, and which batch
fits."""

from __future__ import annotations

from functools import wraps

from scaleup.common.distributed import join
from scaleup.common.errors import UserError
from scaleup.common.processes import is_full
from scaleup.common.text import format_gib
from scaleup.config.schema import Arm, Recipe
from scaleup.sweeps.memory import by_part, largest_batch, own_memory
from scaleup.sweeps.sketch import Sketch
from scaleup.training import run
from scaleup.training.run_directory import RunResult, StoppedRun


@wraps(run.train)
def train(
    recipe: Recipe, arms: dict[str, Arm] | None = None, overwrite: bool = False, stop_after: float | None = None
) -> RunResult | StoppedRun:
    try:
        return run.train(recipe, arms, overwrite, stop_after)
    except RuntimeError as error:
        if not is_full(error):
            raise
        raise UserError(_out_of_memory(Sketch(recipe, arms or {"model": recipe.arm}), join().size)) from error


def _out_of_memory(sketch: Sketch, ranks: int) -> str:
    needed, batch = by_part(sketch, sketch.arms, ranks=ranks), sketch.recipe.data.batch
    largest = largest_batch(sketch, sketch.arms, own_memory(), ranks)
    parts = ", ".join(f"{part} {format_gib(size)}" for part, size in needed.items() if size and part != "total")
    advice = f"the largest batch that fits is {largest}, data.batch is {batch}" if largest else "not one sample fits"
    if largest >= batch:
        advice = f"by the plan a batch of {batch} fits, so other processes may use the device"
        advice += f"; try data.batch={batch // 2}" * (batch > 1)
    graphs = sketch.recipe.train.cuda_graphs  # plans do not count what is recorded
    return (
        f"the device has no memory left; by the plan it holds {parts}, in all {format_gib(needed['total'])} of "
        f"{format_gib(own_memory())}; {advice}; train.accumulate, arm.grad_checkpointing=true"
        f"{' and train.cuda_graphs=off' * (graphs != 'off')} need less; the last checkpoint stays, and the run goes on "
        f"from it with trunk.placement=host{' train.cuda_graphs=off' * (graphs == 'trunk')}"
    )
