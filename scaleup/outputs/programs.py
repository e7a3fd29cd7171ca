"""Models as programs, which run without scaleup: torch.export, ONNX, and compiled ahead of time (AOTInductor)."""

from __future__ import annotations

import math
import re
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scaleup.common.errors import UserError
from scaleup.common.files import write_json
from scaleup.common.timing import now
from scaleup.model.tokenizer import natural_clip
from scaleup.model.tubes import TubeSpec
from scaleup.model.tubevit import TubeViT

Outputs = dict[str, Tensor]
Ends = tuple[int, int]  # the shortest and the longest clip; equal where there is one length


def difference(one: Outputs, other: Outputs, relative: bool) -> float:
    """The largest difference of two sets of outputs, relative to the largest value of the same output in ``one``.

    It is absolute if that value is 0, for example for a head that is not trained."""
    sizes = {name: each.abs().max().item() if relative else 1.0 for name, each in one.items()}
    return largest((one[name] - other[name]).abs().max().item() / (size or 1.0) for name, size in sizes.items())


def medians(*sides: Callable[[], Any], device: torch.device, turns: int = 5) -> list[float]:
    """The seconds of each of two functions, which are called in turns and compute on ``device``."""
    seconds: list[list[float]] = [[] for _ in sides]
    for side, row in list(zip(sides, seconds, strict=True)) * turns:
        began = now(device)
        side()
        row.append(now(device) - began)
    return [statistics.median(row) for row in seconds]


def largest(values: Iterable[float]) -> float:
    """The largest of some numbers, or nan if one of them is nan (``max`` may lose it)."""
    return torch.tensor(list(values), dtype=torch.float64).max().item()


def programs(model: TubeViT, frames: Sequence[int | str]) -> dict[str, Ends | None]:
    """The lengths of clips that each program reads, by its name; None for images.

    Raises:
        UserError: one of ``frames`` is not a length or a span, or a tube of the model does not fit into it.
    """
    own = model.preprocess.frames
    spans = {str(each): _ends(str(each)) for each in frames}
    for text, (shortest, longest) in spans.items():
        specs = model.tokenizer.specs((max(shortest, 2), *model.preprocess.size))
        for spec in specs:
            spec.places((shortest, *model.preprocess.size))
        if shortest < longest and shortest < (first := max(map(_free_from, specs))):
            raise UserError(
                f"frames {text!r}: in clips of less than {first} frames a tube has one token in time, or places closer "
                f"together; allowed are spans that begin at {first} or later, and lengths one by one"
            )
    others = {f"video_{text}": ends for text, ends in spans.items() if ends != (own, own)}
    return {"image": None, "video": (own, own)} | others


def _free_from(spec: TubeSpec) -> int:
    """The shortest clip of a span: each tube has two tokens in time, because torch.export treats one token differently,
    and their distance is stride / fold."""
    return spec.offset[0] + spec.kernel[0] + max(spec.stride[0], math.ceil(spec.spacing(0) * (spec.fold[0] - 1)))


def _ends(text: str) -> Ends:
    """Parse ``64`` or ``32-128``: the shortest and the longest length."""
    ends = [int(part) for part in text.split("-")] if re.fullmatch(r"\d+(-\d+)?", text) else []
    if not ends or ends[0] < len(ends) or ends != sorted(set(ends)):  # a clip of one frame would be an image
        raise UserError(f"frames {text!r}; allowed are a length of clips (64) and spans from 2 frames on (32-128)")
    return ends[0], ends[-1]


BATCH = torch.export.Dim("batch", min=1, max=4096)


class Whole(nn.Module):
    """Decoded pixels -> the logits of every head; if there is no head, the pooled features.

    uint8 (B, 3, T, h, w) or (B, 3, h, w) -> {head: (B, C)} or {"features": (B, D)}
    """

    def __init__(self, model: TubeViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Outputs:
        features = self.model.forward_features(self.model.preprocess(pixels))
        return {name: head(features) for name, head in self.model.arm.heads.items()} or {"features": features}


class Form(NamedTuple):
    """A kind of program: its file extension, how it is written, and how it is loaded and called."""

    ending: str
    write: Callable[[torch.export.ExportedProgram, Path, list[str]], None]
    read: Callable[[Path, list[str]], Callable[[Tensor], Outputs]]


@dataclass
class Costs:
    """The cost of an exported model beside that of the model itself."""

    seconds: dict[str, float]  # of one sample, for each kind of input
    eager_seconds: dict[str, float]  # of the same in the model
    program_bytes: dict[str, int] | None = None
    model_bytes: int | None = None  # of the model's tensors


def write(
    model: TubeViT, form: Form, directory: Path, frames: Sequence[int | str] = ()
) -> tuple[dict[str, float], Costs]:
    """Write the programs ``image`` and ``video`` and ``labels.json`` into a directory, and run what was written.

    The number of samples is free, the size is that of the model. A program runs on the device of the model; one of
    ONNX, which any device can run, is made on the CPU, to which the model then moves.

    Args:
        frames: other lengths of clips, ``64``, and spans of lengths, ``"32-128"``; each gets a program of its own,
            ``video_64`` and ``video_32-128``.

    Returns:
        For each program the largest difference from the model, for two samples and for one, at both ends of a span, in
        shares of the largest output; and what one sample (the longest) costs.
    """
    model = model.cpu() if form.ending == ".onnx" else model
    device = next(model.parameters()).device
    whole, costs = Whole(model.eval()), Costs({}, {}, {}, sum(each.nbytes for each in model.state_dict().values()))
    assert costs.program_bytes is not None
    differences, lengths = dict[str, float](), programs(model, frames)
    for name, ends in lengths.items():
        clips = [_pixels(model, length) for length in sorted(set(ends))] if ends else [_pixels(model, 1)[:, :, 0]]
        clips = [clip.to(device) for clip in clips]
        path, longest = directory / f"{name}{form.ending}", clips[-1]
        with torch.no_grad():
            names = list(whole(longest))  # and tables of positions are kept from now on: programs have them as numbers
            form.write(traced(whole, longest, ends), path, names)
            run = form.read(path, names)
            inputs = (x for clip in clips for x in (clip, clip[:1]))
            differences[name] = largest(difference(whole(x), run(x), True) for x in inputs)
            one = partial(run, longest[:1]), partial(whole, longest[:1])
            costs.seconds[name], costs.eager_seconds[name] = medians(*one, device=device)
            files = directory.glob(f"{path.name}*")  # ONNX keeps the weights of large models beside it
            costs.program_bytes[name] = sum(file.stat().st_size for file in files)
    write_json(directory / "labels.json", description(model, lengths))
    return differences, costs


def traced(whole: Whole, pixels: Tensor, ends: Ends | None) -> torch.export.ExportedProgram:
    """The program of a model: for one length of clips, or for all of a span, of which ``pixels`` are the longest.

    Raises:
        UserError: the model cannot be traced.
    """
    free: dict[int, Any] = {0: BATCH}
    if ends and ends[0] < ends[1]:
        free[2] = torch.export.Dim("frames", min=ends[0], max=ends[1])
    try:  # what cannot be proven of a free number of frames, the program checks when it runs
        return torch.export.export(
            whole, (pixels,), dynamic_shapes=(free,), prefer_deferred_runtime_asserts_over_guards=2 in free
        )
    except torch._dynamo.exc.UserError as error:
        reason = " ".join(str(error).split("\n")[:2])
        raise UserError(f"torch.export cannot trace this model: {reason}") from error


def _pixels(model: TubeViT, length: int) -> Tensor:
    """Two clips as they are decoded: uint8 (2, 3, T, h, w)."""
    return (natural_clip(length, model.preprocess.size, count=2) * 255).round().byte()


def description(model: TubeViT, lengths: Mapping[str, Ends | None]) -> dict[str, Any]:
    """What somebody who runs a program must know."""
    shapes = {name: ["batch", 3, *_frames(ends), *model.preprocess.size] for name, ends in lengths.items()}
    return {
        "input": {"dtype": "uint8", "colours": "RGB", "fps": model.preprocess.fps, "shapes": shapes},
        "heads": model.config.heads,
        "device": next(model.parameters()).device.type,
    } | ({"losses": {head: loss.kind for head, loss in losses.items()}} if (losses := model.config.losses) else {})


def _frames(ends: Ends | None) -> list[int | str]:
    """The frames of a shape: none of an image, a number, or ``"32-128"``."""
    if ends is None:
        return []
    return [ends[0] if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"]


def _write_onnx(traced: torch.export.ExportedProgram, path: Path, names: list[str]) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--to onnx needs the package {error.name!r}: pip install 'scaleup[onnx]'") from error
    program = torch.onnx.export(traced, verbose=False, input_names=["pixels"], output_names=names)
    assert program is not None
    program.save(path)


def _read_onnx(path: Path, names: list[str]) -> Callable[[Tensor], Outputs]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("--to onnx is checked with 'onnxruntime': pip install 'scaleup[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait sleep
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Outputs:
        outputs = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs), strict=True))

    return run


def _write_half(traced: torch.export.ExportedProgram, path: Path, names: list[str]) -> None:
    """As :func:`_write_onnx`, but weights and products are float16; what goes in and comes out is as it was."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with tempfile.TemporaryDirectory(dir=path.parent) as whole:
        _write_onnx(traced, Path(whole) / path.name, names)
        program = onnx.load(Path(whole) / path.name)
    halved = convert_float_to_float16(program, keep_io_types=True, disable_shape_infer=True)
    apart = halved.ByteSize() > MOST  # as protobuf allows
    onnx.save(halved, path, save_as_external_data=apart, location=f"{path.name}.data" if apart else None)


def _write_compiled(traced: torch.export.ExportedProgram, path: Path, names: list[str]) -> None:
    try:
        torch._inductor.aoti_compile_and_package(traced, package_path=str(path))
    except Exception as error:  # a compiler that is not there, or does not know this machine
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--to aoti could not compile here: {reason}") from error


MOST = 2**31 - 2**20  # bytes of an ONNX file with its weights inside
HALF = Form(".onnx", _write_half, _read_onnx)
FORMS = {
    "torch": Form(
        ".pt2",
        lambda traced, path, names: torch.export.save(traced, path),
        lambda path, names: torch.export.load(path).module(),
    ),
    "onnx": Form(".onnx", _write_onnx, _read_onnx),
    "aoti": Form(".pt2", _write_compiled, lambda path, names: torch._inductor.aoti_load_package(str(path))),
}
