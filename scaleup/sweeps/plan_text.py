"""The cost of a run in words."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.common.text import columns, format_duration, format_gib
from scaleup.sweeps.costs import ArmCost, Plan, Time


def describe(plan: Plan) -> str:
    """The plan as text, in columns."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    tokens = plan.tokens
    tubes = ", ".join(f"{name} {count}" for name, count in tokens.tubes.items())
    yield f"{plan.steps} steps of {plan.batch} samples on {plan.ranks} device(s)"
    yield f"tokens: image {tokens.image}, video {tokens.video} (prefix {tokens.prefix}, {tubes})"
    yield ""
    for kind, flops in plan.flops.items():
        yield from columns(
            [["one " + kind, "parameters trained", "frozen", "forward", "step"]]
            + [["trunk", "", "", _flop(flops.trunk), _flop(flops.trunk)]]
            + [_arm_row(name, arm, kind) for name, arm in plan.arms.items()]
            + [["all", "", "", _flop(flops.forward), _flop(flops.step)]]
        )
        yield ""
    yield from columns([["tensors on a device", ""], *([part, format_gib(size)] for part, size in plan.memory.items())])
    yield f"on a CPU {format_gib(plan.cpu_memory)}, since gaps remain between tensors; Python and libraries come on top"
    yield f"of {format_gib(plan.available)}; the largest batch that fits is {plan.largest_batch}"
    if len(plan.waves) > 1:
        yield f"{len(plan.waves)} waves: " + "; ".join(", ".join(wave) for wave in plan.waves)
    yield ""
    if plan.cache:
        sizes = ", ".join(f"{format_gib(size)} in {precision}" for precision, size in plan.cache.bytes.items())
        yield f"a token cache of {plan.cache.views} view(s) takes {sizes}"
    yield from _times(plan.time)
    yield from (f"WARNING: {warning}" for warning in plan.warnings)
    yield from (f"machine {number}: {', '.join(group)}" for number, group in enumerate(plan.machines, 1))


def _arm_row(name: str, arm: ArmCost, kind: str) -> list[str]:
    flops = arm.flops[kind]
    title = f"{name} (frozen depth {arm.frozen_depth})"
    counts = [f"{count:,}" for count in (arm.trained_parameters, arm.frozen_parameters)]
    return [title, *counts, _flop(flops.forward), _flop(flops.step)]


def _times(time: Time) -> Iterator[str]:
    how = "as a matrix product here" if time.measured else "as given"
    times = {"a step": time.step, "an epoch": time.epoch, "an epoch from the cache": time.cached_epoch}
    times["the run"] = time.run
    words = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in times.items() if seconds is not None)
    yield f"at {time.gflops:,.0f} GFLOP/s a device ({how}), loading apart: {words}"


def _flop(flops: int) -> str:
    return f"{flops / 1e9:,.2f} GFLOP" if flops >= 1e8 else f"{flops / 1e6:,.2f} MFLOP"
