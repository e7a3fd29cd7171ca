"""Model directories: ``config.json``, from which a model is rebuilt; the other files; the names of tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from torch import Tensor

from scaleup.checkpoint.hub import HUB, find
from scaleup.common import tensors
from scaleup.common.errors import UserError, nearest
from scaleup.common.files import read_json
from scaleup.config import schema
from scaleup.config.rules import Count, Finite, Gate, Index, Lengths, PoolDepth, Positive, check

FORMAT = "scaleup/1"


@dataclass
class Source:
    """The image model (backbone) that a model was made from."""

    name: str
    kwargs: dict[str, Any]  # arguments for its library's model
    weights: str | None  # where the weights were; None: random, from ``seed``
    license: str
    seed: int
    sha256: str | None  # of the weights; None where they were none of the public's


@dataclass
class Adapter:
    """The adapter on the frozen late blocks. ``rank`` and ``alpha`` are those of LoRA and DoRA."""

    kind: Literal["lora", "dora", "ia3"]
    rank: Count
    alpha: Positive


@dataclass
class Pool:
    """How tokens become features where it is not the backbone's own way; the numbers are those of ``attentive``."""

    kind: Literal["mean", "attentive"]
    queries: Count = 1
    heads: Count = 16  # of the attention
    depth: PoolDepth = 1  # blocks, the cross-attention among them
    taps: list[Count] = field(default_factory=list)  # depths of the trunk whose tokens are read too


@dataclass
class HeadLoss:
    """What a head learns (:mod:`scaleup.model.objective`). ``mean`` and ``std`` are those of the training labels of a
    head that learns a number: its output is mean + std * (what its layer gives)."""

    kind: schema.Loss = "softmax"
    mean: Finite = 0.0
    std: Positive = 1.0


OPTIONAL: dict[str, Any] = {"pool": None, "losses": {}}  # keys that the file leaves out where they have this value


@dataclass(kw_only=True)
class ModelConfig:
    """``config.json``: everything needed to rebuild a model. Keys mean the same as in a recipe."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # of all sections

    backbone: Source
    interpolate: Lengths | None = None
    frozen_depth: Index = 0
    gate: Gate = False
    adapter: Adapter | None = None
    pool: Pool | None = None  # None: the backbone's own
    heads: dict[str, list[str]] = field(default_factory=dict)  # head -> names of its classes
    losses: dict[str, HeadLoss] = field(default_factory=dict)  # of the heads whose loss is not softmax
    input: schema.Input
    frames: schema.Frames
    tubes: dict[str, schema.Tube]
    positions: schema.Positions

    def __post_init__(self) -> None:
        self.order = [item.name for item in fields(self)]  # of the keys in the file

    def loss(self, head: str) -> str:
        """The kind of a head's loss."""
        return self.losses[head].kind if head in self.losses else "softmax"

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        content = asdict(self)
        keys = [key for key in self.order if key not in OPTIONAL]
        keys += [key for key, absent in OPTIONAL.items() if content[key] != absent]
        return {"format": FORMAT, **{key: content[key] for key in keys}}

    @classmethod
    def from_json(cls, content: Any, origin: str) -> ModelConfig:
        """A config from the content of the file ``origin``; every value is checked.

        Raises:
            UserError: lists every key that is missing, unknown or has a wrong value.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{origin} does not have the format {FORMAT!r}")
        content = {key: value for key, value in content.items() if key != "format"}
        config, mistakes = check(cls, content)
        mistakes += _missing(OPTIONAL | content, asdict(config) if config else {})
        if config is None or mistakes:
            raise UserError(
                f"{origin} does not describe a model: {'; '.join(mistakes[:6])} ({len(mistakes)} faults in all)"
            )
        config.order = list(content)
        return config


def _missing(content: Any, complete: Any, at: str = "") -> Iterator[str]:
    """Settings that the file lacks. (Defaults are not used, because a later version may change them.)"""
    for key, value in complete.items():
        if isinstance(content, dict) and key not in content:
            yield f"{at}{key}: is missing"
        elif isinstance(content, dict) and isinstance(value, dict):
            yield from _missing(content[key], value, f"{at}{key}.")


def read_config(directory: Path) -> ModelConfig:
    """``config.json`` of a model directory.

    Raises:
        UserError: it cannot be read, or see :meth:`ModelConfig.from_json`.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a model directory: it has no config.json")
    return ModelConfig.from_json(read_json(path), str(path))


ADAPTER_PREFIX = "base_model.model."  # before the library's own names in a PEFT directory
ADAPTER_NAME = ".default"  # how peft calls an adapter without a name of its own


def without_part(name: str) -> str:
    """A tensor's name without the parts of the model that hold it: ``norm.weight`` for ``arm.tail.norm.weight``."""
    for prefix in ("trunk.", "arm.", "tokenizer.", "stem.", "tail."):
        name = name.removeprefix(prefix)
    return name


def public_name(name: str, block_prefix: str) -> str:
    """A tensor's name on disk: the library's name if it has one, such as ``blocks.26.x`` for ``arm.blocks.26.x``.

    Args:
        block_prefix: text before a block's number in the library's names.
    """
    name = without_part(name)
    if not name.startswith("blocks."):
        return name
    name = block_prefix + name.removeprefix("blocks.")
    if not is_of_adapter(name):
        return name.replace(".base_layer.", ".")
    layer, _, rest = name.partition(ADAPTER_NAME)
    return ADAPTER_PREFIX + layer + ("" if layer.endswith("lora_magnitude_vector") else rest)


def is_of_adapter(name: str) -> bool:
    """Whether a tensor of a block belongs to its adapter."""
    return ADAPTER_NAME in name


def refuse_misfits(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], optional: set[str], path: Path) -> None:
    """UserError if the tensors ``stored`` in ``path`` differ from ``own`` in names, shapes or types."""
    faults = [f"unexpected {name}{nearest(name, own, 1)}" for name in sorted(stored.keys() - own.keys())]
    faults += [f"missing {name}" for name in sorted(own.keys() - stored.keys() - optional)]
    faults += [
        f"{name} is {_kind(stored[name])}, but must be {_kind(own[name])}"
        for name in sorted(own.keys() & stored.keys())
        if _kind(own[name]) != _kind(stored[name])
    ]
    if faults:
        raise UserError(f"{path} does not fit its config.json: {'; '.join(faults[:6])} ({len(faults)} faults in all)")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


FULL, DELTA = "model.safetensors", "delta.safetensors"
ADAPTER, ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter", "adapter_model.safetensors", "adapter_config.json"  # peft's own


NO_MODEL = "is no model: it has tubes alone, for tools/transplant.py; allowed are a model's directory and a hub id"


def refuse_tubes(directory: Path) -> None:
    """UserError if a directory has no more than what a transplant takes of a small model."""
    names = tensors.File(directory / FULL).mapped if (directory / FULL).is_file() else ()
    if names and all(name.startswith(("patch_embed.", "tubes.")) for name in names):
        raise UserError(f"{directory} {NO_MODEL}")


def local(source: str | Path) -> Path:
    """The model directory ``source``, downloaded if it is a hub id; UserError if there is none."""
    directory = Path(source)
    if directory.is_dir():
        refuse_tubes(directory)
        return directory
    if str(source).count("/") != 1 or directory.exists():
        raise UserError(f"{source} is not a model directory; allowed are a directory and a hub id (owner/name)")
    if directory.parts[0] == "donors":
        raise UserError(f"{source} {NO_MODEL}")
    place = f"{HUB}{source}"
    try:
        directory = find(place, ["config.json"]).parent
        find(place, [FULL, DELTA])
        if read_config(directory).adapter:
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                find(place, [f"{ADAPTER}/{name}"])
        return directory
    except UserError as error:
        raise UserError(f"there is no directory {source}; as a hub id, {error}") from error


def read_tensors(directory: Path, waiting: Collection[str] = ()) -> dict[str, Tensor]:
    """All tensors of a model directory, including its adapter. Those in ``waiting`` are mapped, not read."""
    path = next((directory / name for name in (FULL, DELTA) if (directory / name).exists()), None)
    if path is None:
        raise UserError(f"{directory} has a config.json but neither {FULL} nor {DELTA}")
    beside = directory / ADAPTER / ADAPTER_WEIGHTS
    file = tensors.File(path)
    names = [name for name in file.mapped if name not in waiting]
    content = file.mapped | dict(zip(names, file.copies(names), strict=True))
    return content | (tensors.read(beside)[0] if beside.exists() else {})


def read_report(directory: Path) -> dict[str, Any]:
    """The content of ``report.json``; empty if there is none."""
    path = directory / "report.json"
    return read_json(path) if path.exists() else {}


def stages(report: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The report of a model, and of each model that it started from."""
    while report:
        yield report
        report = report.get("began_from")


def trained_on(report: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The training data of a model and of the models that it started from, with a note for data that only tubes have
    seen."""
    for stage in stages(report):
        yield from ((each, "") for each in stage.get("data", {}).values())
        yield from ((each, ", by the tubes") for each in stage.get("parents", {}).get("small", {}).get("data", ()))
