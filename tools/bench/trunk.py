"""The trunk in each precision compared with float32: seconds of a pass over one clip, and how much its output
changes."""

from __future__ import annotations

from functools import partial

import torch

from bench.measure import Figures, alternate, compare, machine, measured, timed
from bench.ours import adapted
from scaleup.model.adapter import Adapt
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.trunk import COMPUTED_IN, Trunk, cast_trunks, drift


@torch.inference_mode()
def trunk(backbone: str = "vit_b", frozen_depth: int | None = None, repeats: int = 5) -> Figures:
    """Random weights; clips of 32x224x224.

    Args:
        frozen_depth: None for three quarters of the blocks.
    """
    before, model = machine(), adapted(backbone)
    frozen = model.depth - model.depth // 4 if frozen_depth is None else frozen_depth
    exact = model.with_arm(frozen, True, {}, adapt=Adapt("none")).trunk
    assert exact is not None
    clip = normalise(natural_clip(model.preprocess.frames, model.preprocess.size), model.config.input)
    reference, rows = exact(clip, [frozen])[frozen].h, []
    for precision in [name for name in COMPUTED_IN if name != "float32"]:
        low = Trunk(exact.tokenizer, exact.blocks)
        cast_trunks([low], precision, {f"blocks.{name}" for name in exact.blocks.state_dict()})
        moved = drift(reference, low(clip, [frozen])[frozen].h)
        timers = timed(partial(low, clip, [frozen])), timed(partial(exact, clip, [frozen]))
        seconds = alternate(*timers, repeats, label=precision)
        rows.append({"backbone": backbone, "precision": precision, "drift": moved, **compare(seconds)})
    return measured(before, rows)
