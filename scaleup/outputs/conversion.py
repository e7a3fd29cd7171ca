"""Exports: adapted models in forms that other tools load. Each export is compared with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from scaleup.backbones.backbone import resolve
from scaleup.backbones.timm import create
from scaleup.checkpoint.model_directory import ADAPTER_PREFIX, ADAPTER_WEIGHTS, local
from scaleup.common import tensors
from scaleup.common.distributed import device_type
from scaleup.common.errors import UserError, nearest
from scaleup.common.files import make_readable, new_directory, refuse_existing, write_json
from scaleup.model import adapter, pretrained
from scaleup.model.build import load
from scaleup.model.kernels import set_products
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.tubevit import TubeViT
from scaleup.outputs import programs
from scaleup.outputs.programs import Costs, Outputs, difference, largest, medians
from scaleup.transplants import donor

OWN = ("delta", "full")
ON_DEVICE = ("torch", "aoti")  # programs with a device built in
TARGETS = (*OWN, "tubes", "peft", "timm", "transformers", *programs.FORMS)
HALF_ROUNDING = 2e-2  # the same in float16
ROUNDING = 1e-4  # allowed difference, relative to an output's size, if sums have another order


@dataclass
class Export:
    """The result of an export.

    ``differences`` are the largest differences of pooled features and of every head's logits, for an image, a video and
    clips of other lengths. They are absolute; with ``relative`` (merged models, programs: their sums have another
    order), they are divided by the largest output.
    """

    to: str
    out: str
    bytes: int
    differences: dict[str, float]
    relative: bool
    costs: Costs | None  # of programs and timm's model

    def figures(self) -> dict[str, Any]:
        """The JSON object: ``image_max_abs_diff``, ... or, if relative, ``image_max_rel_diff``, ...; costs."""
        measure = "rel" if self.relative else "abs"
        costs = asdict(self.costs) if self.costs is not None else {}
        figures = {f"{name}_max_{measure}_diff": value for name, value in self.differences.items()}
        return figures | {key: value for key, value in costs.items() if value is not None}


def export(
    source: str | Path,
    to: str,
    out: str | Path,
    base: str | None = None,
    overwrite: bool = False,
    merge: bool = False,
    frames: Sequence[int | str] = (),
    head: str | None = None,
    half: bool = False,
    device: str = "cpu",
) -> Export:
    """Write a model in another form, read that back, and compare the two on an image and on a video.

    Args:
        to: ``delta`` or ``full`` (our own directories), ``tubes`` (what a transplant takes of a small model, in
            float16), ``peft`` (the adapter alone), ``timm`` (the image model alone, in timm's layout),
            ``transformers`` (for its pipeline of videos), ``torch`` (torch.export), ``onnx`` or ``aoti`` (compiled for
            this machine by AOTInductor).
        base: the backbone's weights, if they have been moved.
        frames: other lengths of clips, and spans of lengths (``"32-128"``), for which programs are written and
            compared too.
        merge: merge the model's adapter into the weights of its blocks; programs always do.
        head: the head of a pipeline of transformers; may be None if there is only one.
        half: write weights and products of an ONNX program in float16.
        device: cpu or cuda: on which a program of torch.export or AOTInductor runs.

    Raises:
        UserError: the target is unknown or cannot hold the model, the model has no adapter to merge, there is no such
            device, or the result differs: at all, or by more than ROUNDING if sums have another order, or HALF_ROUNDING
            in float16.
    """
    if to not in TARGETS:
        raise UserError(f"unknown target {to!r}; allowed are {', '.join(TARGETS)}{nearest(to, TARGETS)}")
    if frames and to not in programs.FORMS:
        raise UserError(f"--frames is for programs ({', '.join(programs.FORMS)}); {to} is of no fixed length")
    if half and to != "onnx":
        raise UserError(f"--half is for onnx; {to} is written in the precision of the model")
    if merge and to in ("tubes", "peft"):
        raise UserError(f"--merge is for targets that hold blocks; {to} holds none")
    if base and to == "tubes":
        raise UserError("--base is for models on a backbone that has moved; tubes are taken of a whole small model")
    if head and to != "transformers":
        raise UserError(f"--head is for transformers; {to} has all heads or none")
    _refuse_device(device, to)
    set_products(torch.device(device), tf32=False)
    out = Path(out)
    refuse_existing(out, overwrite)
    low = half or to == "tubes"
    relative = low or merge or to in programs.FORMS
    given = donor.read(local(source)) if to == "tubes" else load(source, base).to(device)
    with new_directory(out, overwrite) as place:
        if isinstance(given, donor.Donor):
            differences, costs = donor.write(given, place), None
        else:
            differences, costs = _write(given, source, to, place, base, merge, frames, head, half)
        limit = HALF_ROUNDING if low else ROUNDING if relative else 0
        if not (most := largest(differences.values())) <= limit:
            share = " of its size" if relative else ""
            raise UserError(f"{to} of {source} differs from it by {most:.1e}{share}; allowed is {limit:g}")
        result = Export(to, str(out), 0, differences, relative, costs)
        if costs is not None:
            write_json(place / "report.json", result.figures())
    result.bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return result


def _write(
    model: TubeViT,
    source: str | Path,
    to: str,
    place: Path,
    base: str | None,
    merge: bool,
    frames: Sequence[int | str],
    head: str | None,
    half: bool,
) -> tuple[dict[str, float], Costs | None]:
    """Write a model in another form; returns how far what was written is from it, and what a program costs."""
    if to in OWN:
        return write_own(model, source, to, place, base, merge), None
    if to == "peft":
        return write_adapter(model, source, place, base), None
    if merge or (to in programs.FORMS and model.config.adapter):
        model = merge_adapter(model)
    if to == "timm":
        return write_timm(model, place)
    if to == "transformers":
        return write_transformers(model, place, head), None
    return programs.write(model, programs.HALF if half else programs.FORMS[to], place, frames)


@torch.inference_mode()
def parity(one: TubeViT, other: TubeViT, relative: bool = False) -> dict[str, float]:
    """Largest difference of the features and of every head's logits, on an ``image`` and on a ``video``.

    Args:
        relative: divide each by the largest value that the same output has in ``one``.
    """
    video = normalise(natural_clip(one.preprocess.frames, one.preprocess.size), one.config.input)  # on the CPU
    inputs = {"image": video[:, :, 0], "video": video}
    return {name: difference(_outputs(one, x), _outputs(other, x), relative) for name, x in inputs.items()}


def _outputs(model: TubeViT, x: Tensor) -> Outputs:
    """Of a model on any device, on the CPU."""
    features = model.forward_features(x.to(next(model.parameters()).device))
    outputs = {"features": features} | {f"head {name}": head(features) for name, head in model.arm.heads.items()}
    return {name: output.cpu() for name, output in outputs.items()}


def _refuse_device(device: str, to: str) -> None:
    if device == "cpu":
        return
    if to not in ON_DEVICE:
        raise UserError(f"--device is for programs that run on one device ({', '.join(ON_DEVICE)}); {to} runs on any")
    if device != device_type():
        raise UserError(f"there is no device {device!r} here; allowed are cpu and, on a machine with a GPU, cuda")


def merge_adapter(model: TubeViT) -> TubeViT:
    """The model, after its adapter is merged into the weights of its blocks."""
    if model.config.adapter is None:
        raise UserError("this model has no adapter to merge; leave out --merge")
    adapter.merge(model.arm.blocks)
    model.config.adapter = None
    return model


def write_own(
    model: TubeViT, source: str | Path, to: str, out: Path, base: str | None, merge: bool
) -> dict[str, float]:
    """Write ``source``, from which ``model`` was read; returns the :func:`parity` of the new directory."""
    copy = merge_adapter(load(source, base)) if merge else model
    if to == "delta" and not copy.base:
        copy.base = pretrained.base_of(copy.config, base)
    copy.save_pretrained(out, to, overwrite=True)
    del copy
    return parity(model, load(out, base), relative=merge)


def write_adapter(model: TubeViT, source: str | Path, out: Path, base: str | None) -> dict[str, float]:
    """Write the adapter for ``peft.PeftModel.from_pretrained``, which puts it on the backbone. Tubes, gate and heads
    are not in it.

    Returns:
        The :func:`parity` of the model with the adapter that was written.

    Raises:
        UserError: the model has no adapter.
    """
    if model.config.adapter is None:
        raise UserError(
            "a PEFT directory holds an adapter, and this model has none; allowed are arms that trained with arm.adapt "
            f"{', '.join(adapter.KINDS)}"
        )
    adapter.write(out, model.arm.blocks, model.block_prefix, model.config.adapter, _of_adapter(model))
    other, written = load(source, base), tensors.read(out / ADAPTER_WEIGHTS)[0]
    with torch.no_grad():
        for name, tensor in _of_adapter(other).items():
            tensor.copy_(written[name])
    return parity(model, other)


def _of_adapter(model: TubeViT) -> dict[str, Tensor]:
    """The tensors of the adapter."""
    return {name: tensor for name, tensor in model.named_tensors().items() if name.startswith(ADAPTER_PREFIX)}


@torch.inference_mode()
def write_timm(model: TubeViT, directory: Path) -> tuple[dict[str, float], Costs]:
    """Write a directory for ``timm.create_model("local-dir:DIRECTORY")``, without classifier, and load it.

    Returns:
        The largest difference of an image's pooled features, and the cost of an image.

    Raises:
        UserError: no model of timm computes the same; the sentence says why.
    """
    name, size, input = _refuse_what_timm_lacks(model), model.preprocess.size, model.config.input
    vit, model = create(name, dict(model.config.backbone.kwargs), size), model.cpu()
    own, tensors = vit.state_dict(), model.named_tensors()
    vit.load_state_dict({key: tensor for key, tensor in tensors.items() if key in own})  # strict: nothing is missing
    fed = {"input_size": (3, *size), "mean": tuple(input.mean), "std": tuple(input.std)}
    save_for_hf(vit, str(directory), {"pretrained_cfg": fed}, safe_serialization=True)
    make_readable(directory / "model.safetensors")  # safetensors writes for the owner alone
    image = normalise(natural_clip(1, size), input)[:, :, 0]
    loaded: Any = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    features = loaded.forward_head(loaded.forward_features(image), pre_logits=True)
    differs = (features - model.forward_features(image)).abs().max().item()
    seconds, eager = medians(lambda: loaded(image), lambda: model.forward_features(image), device=image.device)
    return {"image": differs}, Costs({"image": seconds}, {"image": eager})


def write_transformers(model: TubeViT, directory: Path, head: str | None) -> dict[str, float]:
    """See :func:`scaleup.outputs.hf_model.write`."""
    try:
        from scaleup.outputs import hf_model
    except ImportError as error:
        raise UserError(
            f"--to transformers needs the package {error.name!r}: pip install 'scaleup[transformers]'"
        ) from error
    return hf_model.write(model, directory, head)


def _refuse_what_timm_lacks(model: TubeViT) -> str:
    """timm's name of the architecture."""
    library, _, name = resolve(model.config.backbone.name).partition(":")
    gate, reason = model.arm.gate, None
    if library != "timm":
        reason = f"its backbone is one of {library}"
    elif model.config.pool:
        reason = f"its features come from a pool of its own ({model.config.pool.kind})"
    elif model.config.adapter:
        reason = "it has an adapter; add --merge"
    elif gate is not None and gate.alpha.any():
        most = gate.alpha.tanh().abs().max().item()
        reason = f"its gate is open (tanh(alpha) = {most:.3f}) and adds z0 to a block's output"
    elif model.config.positions.kind != "backbone":
        reason = f"its positions ({model.config.positions.kind}) are not the backbone's own"
    if reason:
        raise UserError(f"timm's layout cannot hold this model: {reason}")
    return name
