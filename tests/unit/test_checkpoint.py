import copy
import errno
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import scaleup
from scaleup.backbones.build import build
from scaleup.checkpoint import model_directory
from scaleup.checkpoint.model_directory import ModelConfig
from scaleup.common import tensors
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model import pretrained
from scaleup.model.build import describe, load
from scaleup.model.tubevit import TubeViT

KWARGS = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "drop_path_rate": 0.1}
VIDEOS = torch.randn(1, 3, 8, 16, 24)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Weights of an image model as they are published, classifier included."""
    torch.manual_seed(1)
    vit = build("timm:vit_tiny_patch16_224", dict(KWARGS), (16, 24), None).source
    state = {name: torch.randn_like(tensor) * 0.2 for name, tensor in vit.state_dict().items()}
    save_file(state | {"head.weight": torch.randn(5, 24), "head.bias": torch.zeros(5)}, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def made(weights: Path | None, frozen_depth: int = 3, positions: str = "backbone") -> TubeViT:
    """An adapted model, made as a transplant makes one."""
    backbone = build("timm:vit_tiny_patch16_224", dict(KWARGS), (16, 24), weights and str(weights), 4)
    config = describe(
        backbone,
        4,
        input=schema.Input(frames=8, size=[16, 24]),
        frames=schema.Frames(4),
        tubes={"long": schema.Tube([4, 4, 4], [4, 8, 8], fold=[2, 1, 1])},
        positions=schema.Positions(positions, 0.5),
        frozen_depth=frozen_depth,
        gate=frozen_depth > 0,
        heads={"motion": ["left", "right"]},
    )
    model = TubeViT.assemble(config, backbone).eval()
    model.base = tensors.hashes(backbone.state_dict())
    config.backbone.sha256 = tensors.fingerprint(model.base)
    model.report = {"tokens": 12}
    return model


def assert_same(found: TubeViT, wanted: TubeViT) -> None:
    a, b = found.state_dict(), wanted.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
    assert torch.equal(found(VIDEOS), wanted(VIDEOS)) and torch.equal(found(VIDEOS[:, :, 0]), wanted(VIDEOS[:, :, 0]))


@pytest.mark.parametrize("kind", ["delta", "full"])
@pytest.mark.parametrize("positions", ["backbone", "learned"])
def test_a_model_comes_back_bit_for_bit(kind: str, positions: str, base: Path, tmp_path: Path) -> None:
    model = made(base, positions=positions)
    with torch.no_grad():
        for tensor in model.arm.parameters():
            tensor += 0.1
    assert model.save_pretrained(tmp_path / "out", kind) == tmp_path / "out"
    found = scaleup.load(tmp_path / "out")
    assert_same(found, model)
    assert found.config == model.config and found.report == {"tokens": 12} and not found.training
    assert [t.requires_grad for t in found.parameters()] == [t.requires_grad for t in model.parameters()]
    files = {
        "config.json",
        "report.json",
        "README.md",
        model_directory.FULL if kind == "full" else model_directory.DELTA,
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    found.save_pretrained(tmp_path / "again", kind if kind == "full" else None)
    again, first = tmp_path / "again", tmp_path / "out"
    assert all((again / name).read_bytes() == (first / name).read_bytes() for name in files if "tensors" not in name)
    assert_same(scaleup.load(again), model)


@pytest.mark.parametrize("frozen_depth", [0, 3])
def test_by_default_a_delta_is_written_where_there_is_something_to_differ_from(
    frozen_depth: int, tmp_path: Path
) -> None:
    model = made(None, frozen_depth)
    model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / model_directory.DELTA).exists() == (frozen_depth > 0)
    assert_same(load(tmp_path / "out"), model)


def test_a_delta_holds_nothing_that_the_base_has(base: Path, tmp_path: Path) -> None:
    model = made(base)
    own = {"tubes.long.weight", "tubes.long.bias", "gate.alpha", "heads.motion.weight", "heads.motion.bias"}
    model.save_pretrained(tmp_path / "new", "delta")
    assert load_file(tmp_path / "new" / model_directory.DELTA).keys() == own
    model.arm.tail.norm.bias.data[0] += 1e-6
    model.arm.blocks["3"].mlp.fc1.weight.data[0, 0] += 1e-6
    model.save_pretrained(tmp_path / "trained", "delta")
    assert load_file(tmp_path / "trained" / model_directory.DELTA).keys() == own | {
        "norm.bias",
        "blocks.3.mlp.fc1.weight",
    }
    assert_same(load(tmp_path / "trained"), model)


def test_a_full_directory_holds_every_tensor_under_the_librarys_name(base: Path, tmp_path: Path) -> None:
    model = made(base)
    model.save_pretrained(tmp_path / "out", "full")
    found = load_file(tmp_path / "out" / model_directory.FULL)
    public = load_file(base)
    assert {name for name in public if not name.startswith("head.")} < found.keys()
    assert all(torch.equal(found[name], public[name]) for name in found.keys() & public.keys())
    assert len(found) == len(model.state_dict())


def test_a_full_directory_needs_no_base(base: Path, tmp_path: Path) -> None:
    model = made(base)
    model.save_pretrained(tmp_path / "out", "full")
    base.unlink()
    assert_same(load(tmp_path / "out"), model)


def test_a_delta_whose_base_moved_is_told_where_it_is(base: Path, tmp_path: Path) -> None:
    model = made(base)
    model.save_pretrained(tmp_path / "out")
    moved = base.rename(tmp_path / "moved.safetensors")
    with pytest.raises(UserError, match=f"are not at {base}; give their place as base"):
        load(tmp_path / "out")
    assert_same(load(tmp_path / "out", base=str(moved)), model)


def test_a_base_of_other_weights_is_refused(base: Path, tmp_path: Path) -> None:
    made(base).save_pretrained(tmp_path / "out")
    state = load_file(base)
    state["blocks.0.norm1.bias"][0] += 1e-6
    save_file(state, base)
    with pytest.raises(UserError, match=r"have sha256 [0-9a-f]{16}\.\.\., but the model was made from"):
        load(tmp_path / "out")


def edit(path: Path, **changes: Tensor | None) -> None:
    state = load_file(path) | changes
    save_file({name.replace("__", "."): tensor for name, tensor in state.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("delta", {"gate.alpha": None}, "missing gate.alpha"),
        ("delta", {"tubes.long.weight": None}, "missing tubes.long.weight"),
        ("delta", {"tubes.lang.weight": torch.zeros(2)}, "unexpected tubes.lang.weight; nearest: 'tubes.long.weight'"),
        ("delta", {"blocks.4.norm1.bias": torch.zeros(24)}, "unexpected blocks.4.norm1.bias"),
        ("delta", {"norm.bias": torch.zeros(25)}, r"norm.bias is \(25,\) torch.float32, but must be \(24,\)"),
        ("delta", {"norm.bias": torch.zeros(24).half()}, r"norm.bias is \(24,\) torch.float16, but must be"),
        ("full", {"blocks.0.norm1.bias": None}, "missing blocks.0.norm1.bias"),
        ("full", {"pos_embed": None, "cls_token": None}, r"missing cls_token; missing pos_embed \(2 faults in all\)"),
        ("full", {"extra": torch.zeros(2)}, "unexpected extra"),
        ("full", {"heads.motion.weight": torch.zeros(3, 24)}, r"heads.motion.weight is \(3, 24\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(kind: str, change: dict, words: str, tmp_path: Path) -> None:
    made(None).save_pretrained(tmp_path / "out", kind)
    edit(tmp_path / "out" / f"{'model' if kind == 'full' else 'delta'}.safetensors", **change)
    with pytest.raises(UserError, match=words):
        load(tmp_path / "out")


def test_a_model_of_no_public_backbone_has_no_delta(tmp_path: Path) -> None:
    model = made(None)
    model.base = {}
    with pytest.raises(UserError, match="has no delta"):
        model.save_pretrained(tmp_path / "out", "delta")
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_kept_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    model = made(None)
    model.save_pretrained(tmp_path / "out")
    model.arm.gate.alpha.data.fill_(0.5)
    with pytest.raises(UserError, match="exists"):
        model.save_pretrained(tmp_path / "out")
    assert load(tmp_path / "out").arm.gate.alpha.item() == 0
    model.save_pretrained(tmp_path / "out", overwrite=True)
    assert load(tmp_path / "out").arm.gate.alpha.item() == 0.5


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        made(None).save_pretrained(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(small_disk: Path) -> None:
    with pytest.raises(UserError, match=str(small_disk)) as error:
        made(None).save_pretrained(small_disk / "out", "full")
    assert "\n" not in str(error.value) and list(small_disk.iterdir()) == []


@pytest.mark.parametrize("missing", ["config.json", "delta.safetensors"])
def test_a_directory_that_lacks_a_file_is_refused(missing: str, tmp_path: Path) -> None:
    made(None).save_pretrained(tmp_path / "out")
    (tmp_path / "out" / missing).unlink()
    with pytest.raises(UserError, match=missing):
        load(tmp_path / "out")


@pytest.mark.parametrize("source", ["no/such/thing", "nothing", "", "/none/at/all"])
def test_what_is_no_directory_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not a model directory"):
        load(source)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"text"', "{}", '{"format": "other/1"}', "\xff\xfe", "[" * 9999]
)
def test_a_damaged_config_is_refused(text: str, tmp_path: Path) -> None:
    made(None).save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="config.json"):
        load(tmp_path / "out")


def paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Key paths of every value in a nest of mappings and lists."""
    if at:
        yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(inner, (*at, key))


def at(config: Any, path: tuple) -> tuple[Any, Any]:
    for key in path[:-1]:
        config = config[key]
    return config, path[-1]


def test_every_key_of_a_config_is_needed() -> None:
    model = made(None)
    config = model.config.to_json()
    assert ModelConfig.from_json(config, "here") == model.config
    free = {("backbone", "kwargs"), ("tubes",), ("heads",)}  # names in there are the user's own
    needed = [path for path in paths(config) if isinstance(path[-1], str) and path[:-1] not in free]
    assert len(needed) > 25
    for path in needed:
        lacking = copy.deepcopy(config)
        inner, key = at(lacking, path)
        del inner[key]
        with pytest.raises(UserError, match=rf"here.*({key}: is missing|{key!r}|format)"):
            ModelConfig.from_json(lacking, "here")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("frozen_depth",), "many", "frozen_depth: 'many' is not"),
        (("frozen_depth",), 9, "frozen_depth 9 does not fit a model of 4 blocks"),
        (("tubes", "long", "kernel"), [4, 4], "tubes.long.kernel: .* list"),
        (("tubes", "long", "stride"), [0, 8, 8], "tubes.long.stride: .* at least 1"),
        (("tubes", "long", "kernal"), [4, 4, 4], "tubes.long.kernal: unknown key; nearest: 'kernel'"),
        (("tubes", "long", "fold"), [5, 1, 1], "'long' folds 5 places"),
        (("positions", "kind"), "cosin", "positions.kind: 'cosin' .* nearest: 'cosine'"),
        (("input", "size"), "large", "input.size"),
        (("input", "std"), [0, 1, 1], "input.std"),
        (("heads", "motion"), 3, "heads"),
        (("backbone", "name"), "timm:vit_tinny_patch16_224", "unknown timm model .* nearest: 'vit_tiny_patch16_224'"),
        (("backbone", "name"), "vit_hh", "unknown backbone 'vit_hh'.*nearest: 'vit_h'"),
        (("backbone", "kwargs", "depth"), 0, "not a plain ViT"),
        (("backbone", "kwargs", "num_heads"), 0, "timm cannot build"),
        (("backbone", "kwargs", "embed_dim"), -24, "timm cannot build"),
        (("backbone", "kwargs", "heads"), 2, "timm cannot build .* unexpected keyword argument 'heads'"),
        (("backbone", "kwargs", "norm_layer"), "none such", "timm cannot build"),
    ],
)
def test_values_of_a_config_that_cannot_be_are_named(path: tuple, value: Any, words: str, tmp_path: Path) -> None:
    model = made(None)
    model.save_pretrained(tmp_path / "out", "full")
    config = model.config.to_json()
    inner, key = at(config, path)
    inner[key] = value
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words) as error:
        load(tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_changed_config_loads_or_is_refused_but_never_a_traceback(tmp_path: Path) -> None:
    config, draw, refused = made(None).config.to_json(), random.Random(0), 0
    made(None).save_pretrained(tmp_path / "out", "full")
    junk = [
        None,
        True,
        -1,
        0,
        1,
        2.5,
        7,
        "x",
        "",
        "8",
        [],
        [1],
        [1, 2, 3],
        [0, 0, 0],
        ["a"],
        {},
        {"a": 1},
        float("nan"),
    ]
    places = list(paths(config))
    for _ in range(80):
        changed = copy.deepcopy(config)
        for path in draw.sample(places, draw.choice((1, 1, 2))):
            try:
                inner, key = at(changed, path)
                inner[key] = draw.choice(junk)
            except (TypeError, KeyError, IndexError):
                continue  # the other change took this place away
        (tmp_path / "out" / "config.json").write_text(json.dumps(changed))
        try:
            load(tmp_path / "out")
        except UserError:
            refused += 1
    assert refused > 40


def test_a_damaged_report_loads_or_is_refused_but_never_a_traceback(tmp_path: Path) -> None:
    made(None).save_pretrained(tmp_path / "out", "full")
    path = tmp_path / "out" / "report.json"
    whole, draw = path.read_bytes(), random.Random(0)
    for trial in range(50):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 2, 10))):
            content[draw.randrange(min(len(content), 6000))] = draw.randrange(256)
        path.write_bytes(content[: draw.randrange(len(content))] if trial % 5 == 0 else content)
        try:
            load(tmp_path / "out")
        except UserError as error:
            assert str(error)


@pytest.mark.parametrize("donor", ["donors/ti192", Path(__file__).parents[2] / "recipes/donors/ti192"])
def test_a_donor_is_no_model(donor: str | Path) -> None:
    with pytest.raises(UserError, match=f"^{donor} is no model: it has tubes alone, for tools/transplant.py"):
        load(donor)


def test_a_donor_is_no_backbone() -> None:
    with pytest.raises(UserError, match="ti192 is no model: it has tubes alone"):
        build(str(Path(__file__).parents[2] / "recipes/donors/ti192"), {}, None)
