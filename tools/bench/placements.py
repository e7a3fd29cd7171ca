"""A pass of the trunk whose blocks wait on the device, on the host or in a file, in turns."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from bench.measure import Figures, held_bytes, most_bytes, rotate, timed
from bench.sides import random_clips
from scaleup.backbones.backbone import BlockFile
from scaleup.common.distributed import join
from scaleup.config.schema import Trunk as Settings
from scaleup.model.adapter import Adapt
from scaleup.model.build import prepare_trunks
from scaleup.model.trunk import Trunk
from scaleup.model.tubevit import TubeViT

PLACES = ("device", "host", "disk")


@torch.no_grad()
def placements(name: str, template: TubeViT, batch: int, directory: Path, repeats: int) -> list[Figures]:
    """Three quarters of the blocks, in the default precision of the device; the file in ``directory`` has them in
    float32."""
    depth, device = template.depth - template.depth // 4, join().device
    clips = random_clips(template.preprocess.frames, *template.preprocess.size, batch)
    x = template.preprocess(clips.to(device))
    trunks = {place: trunk_at(template, depth, place, batch, directory) for place in PLACES}
    peaks = {place: _peak(trunk, x, depth) for place, trunk in trunks.items()}
    works = {place: timed(partial(trunk, x, [depth])) for place, trunk in trunks.items()}
    rounds = rotate(works, repeats, label=f"places of {name}")
    return [
        {
            "what": "place of frozen blocks",
            **{"model": name, "batch": batch, "place": place},
            "seconds": median(each[place] for each in rounds),
            "over_device": median(each[place] / each["device"] for each in rounds),
            "peak_bytes": peaks[place],
        }
        for place in PLACES
    ]


def trunk_at(template: TubeViT, depth: int, place: str, batch: int, directory: Path) -> Trunk:
    """The trunk of the first ``depth`` blocks, which wait at ``place``."""
    world = join()
    model = template.with_arm(depth, False, {}, adapt=Adapt("none")).place(world.device, None)
    assert model.trunk is not None
    if place == "disk":
        model.trunk = on_disk(model.trunk, directory / "blocks.safetensors")
    prepare_trunks([model], Settings(placement=place), world, batch)  # type: ignore[arg-type]
    return model.trunk


def on_disk(trunk: Trunk, path: Path) -> Trunk:
    """The same trunk, whose blocks are in a file that is written here."""
    state = {name: tensor.contiguous() for name, tensor in trunk.blocks.state_dict().items()}
    save_file(state, path)
    blocks = [copy.deepcopy(block).to("meta") for block in trunk.blocks]
    return Trunk(trunk.tokenizer, blocks, BlockFile(str(path), {name: name for name in state}))


def _peak(trunk: Trunk, x: torch.Tensor, depth: int) -> int:
    before = held_bytes()
    trunk(x, [depth])
    return most_bytes() - before
