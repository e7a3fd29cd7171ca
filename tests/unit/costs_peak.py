"""``python costs_peak.py returned|kept RECIPE key=value ...``: peaks of two real steps, bytes of tensors and of this
process, which returns what is freed to the system, or keeps it, as training does.

What libraries take beside tensors differs with the processor: 20 to 100 MB.
"""

import ctypes
import itertools
import sys
from pathlib import Path

import peft  # noqa: F401  # what would be imported on the way counts before
import torch
import torchao.quantization  # noqa: F401

from scaleup.common.distributed import join
from scaleup.config import recipe
from scaleup.config.recipe import Recipe
from scaleup.model.kernels import keep_freed_memory
from scaleup.training import engine
from scaleup.training.arm_trainer import ArmTrainer
from scaleup.training.run_inputs import build_models

M_MMAP_THRESHOLD = -3


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def tensors_peak(profiled: torch.profiler.profile) -> int:
    """Bytes that tensors take at most, by what torch's allocator gave and got back."""
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def train(read: Recipe) -> None:
    model = build_models(read, {"model": read.arm})["model"]
    model.arm.kernels = read.train.kernels
    trainer = ArmTrainer("model", model, read.arm, read, join())
    shape = (read.data.batch, 3, model.preprocess.frames, *model.preprocess.size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = {head: torch.zeros(len(clips), dtype=torch.long) for head in model.arm.heads}
    for step in range(2):
        pixels = model.preprocess(clips)
        trainer.step(step, model.arm_inputs(pixels), labels, None)


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1] == "kept":
        keep_freed_memory()
    else:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)
    engine._deepspeed()  # imported when the first engine is made
    read = recipe.load(sys.argv[2], sys.argv[3:])
    join()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        train(read)
    grown = status("VmHWM") - before
    print(tensors_peak(profiled), grown)


if __name__ == "__main__":
    main()
