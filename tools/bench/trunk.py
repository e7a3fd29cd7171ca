"""The frozen part in each precision against float32: seconds of a pass over one clip, and how far h_s moves."""

from __future__ import annotations

from functools import partial

import torch

from bench.measure import Figures, alternated, compared, machine, measured, timed
from bench.ours import adapted
from scaleup.model.adapter import Adapt
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.trunk import COMPUTED_IN, Trunk, cast_trunks, drift


@torch.inference_mode()
def trunk(backbone: str = "vit_b", frozen_depth: int | None = None, repeats: int = 5) -> Figures:
    """Weights drawn at random; clips of 32x224x224.

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
        sides = timed(partial(low, clip, [frozen])), timed(partial(exact, clip, [frozen]))
        turns = alternated(*sides, repeats, what=precision)
        rows.append({"backbone": backbone, "precision": precision, "drift": moved, **compared(turns)})
    return measured(before, rows)
