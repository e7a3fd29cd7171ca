"""Frozen blocks in other precisions and places: the same taps, or as near as is said."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_model import IMAGES, VIDEOS, adapted
from torch import Tensor, nn

from scaleup.backbones.backbone import BlockFile
from scaleup.backbones.build import build
from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.config.schema import Trunk as Settings
from scaleup.model import trunk as frozen
from scaleup.model.build import prepare_trunks
from scaleup.model.tokenizer import Context, Relative
from scaleup.model.trunk import (
    COMPUTED_IN,
    Trunk,
    cast,
    cast_trunks,
    drift,
    fill_on_call,
    is_on_meta,
    load_block,
    measure_precisions,
)

DEPTHS = [1, 3]


def on_disk(trunk: Trunk, path: Path, dtype: torch.dtype = torch.float32) -> Trunk:
    """The same trunk, its blocks but the last in a file alone."""
    state = {f"blocks.{name}": tensor.to(dtype) for name, tensor in trunk.blocks.state_dict().items()}
    save_file(state, path)
    names = {name.removeprefix("blocks."): name for name in state}
    blocks = [copy.deepcopy(block).to("meta") for block in trunk.blocks[:-1]]
    return Trunk(trunk.tokenizer, [*blocks, trunk.blocks[-1]], BlockFile(str(path), names))


def assert_same_taps(one: Trunk, other: Trunk, x: Tensor) -> None:
    ours, theirs = one(x, DEPTHS), other(x, DEPTHS)
    for depth in DEPTHS:
        assert torch.equal(ours[depth].h, theirs[depth].h) and torch.equal(ours[depth].z0, theirs[depth].z0)
        assert ours[depth].h.dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_blocks_in_a_file_give_what_resident_blocks_give(precision: str, stored: torch.dtype, tmp_path: Path) -> None:
    resident = adapted(frozen_depth=3, init_values=0.1)[0].trunk
    resident.blocks.load_state_dict({n: t.to(stored).float() for n, t in resident.blocks.state_dict().items()})
    streamed = on_disk(resident, tmp_path / "blocks.safetensors", stored)
    cast_trunks([streamed], precision, set())
    cast_trunks([resident], precision, set())
    for x in (IMAGES, VIDEOS):
        assert_same_taps(streamed, resident, x)
    assert all(parameter.is_meta for block in streamed.blocks[:2] for parameter in block.parameters())


def test_a_tensor_that_is_in_memory_is_not_read(tmp_path: Path) -> None:
    resident = adapted(frozen_depth=3)[0].trunk
    streamed = on_disk(resident, tmp_path / "blocks.safetensors")
    for trunk in (resident, streamed):
        trunk.blocks[1].mlp.fc1.weight = nn.Parameter(torch.full((96, 24), 0.1), requires_grad=False)
    assert_same_taps(streamed, resident, VIDEOS)


def test_a_class_token_is_computed_alone_by_a_block_in_a_file(tmp_path: Path) -> None:
    resident = adapted(frozen_depth=3)[0].trunk
    streamed = on_disk(resident, tmp_path / "blocks.safetensors")
    found, expected = (trunk(VIDEOS, [2], first=[3]) for trunk in (streamed, resident))
    assert torch.equal(found[3].first, expected[3].first) and found[3].first.shape[1] == 1
    assert torch.equal(found[2].h, expected[2].h) and found[2].first is None


def test_each_block_is_read_once_and_one_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = on_disk(adapted(frozen_depth=4)[0].trunk, tmp_path / "blocks.safetensors")
    fetched: list[int] = []
    real = frozen._fetched

    def spy(*args: Any) -> Any:
        fetched.append(args[-1])
        return real(*args)

    monkeypatch.setattr(frozen, "_fetched", spy)
    running = frozen.iterate_blocks(streamed.blocks, torch.device("cpu"), streamed.file, torch.float32)
    next(running)
    next(running)
    for _ in range(100):
        if len(fetched) == 3:
            break
        __import__("time").sleep(0.01)
    assert fetched == [0, 1, 2]
    list(running)
    assert fetched == [0, 1, 2, 3]


def test_buffers_that_no_file_holds_come_along(tmp_path: Path) -> None:
    kwargs = {"embed_dim": 48, "depth": 3, "num_heads": 4}
    block = build("timm:eva02_tiny_patch14_224", kwargs, (28, 28)).blocks[0]
    path = tmp_path / "blocks.safetensors"
    save_file(block.state_dict(), path)
    buffers = dict(block.named_buffers())
    meta = copy.deepcopy(block).to("meta")
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        meta.get_submodule(owner)._buffers[leaf] = buffer
    file = BlockFile(str(path), {f"0.{name}": name for name in block.state_dict()})
    (call,) = frozen.iterate_blocks([meta], torch.device("cpu"), file, torch.float32)
    h = torch.randn(1, 5, 48)
    assert torch.equal(call(h), block(h))


@pytest.mark.parametrize(
    ("precision", "near", "far"), [("bfloat16", 1e-4, 0.05), ("float16", 1e-6, 0.01), ("int8", 1e-4, 0.05)]
)
def test_low_precision_moves_the_taps_a_little(precision: str, near: float, far: float) -> None:
    model, _ = adapted(frozen_depth=3)
    wanted = model.trunk(VIDEOS, DEPTHS)
    cast_trunks([model.trunk], precision, set())
    found = model.trunk(VIDEOS, DEPTHS)
    for depth in DEPTHS:
        assert near < drift(wanted[depth].h, found[depth].h) < far
        assert torch.equal(wanted[depth].z0, found[depth].z0)  # the tokenizer stays as it is
    floating = [parameter for parameter in model.trunk.blocks.parameters() if parameter.dtype.is_floating_point]
    assert {parameter.dtype for parameter in floating} == {COMPUTED_IN[precision]}
    assert not any(parameter.requires_grad for parameter in floating)


def test_int8_weights_are_the_nearest_of_256_steps_a_row() -> None:
    block = adapted()[0].trunk.blocks[0]
    weight = block.mlp.fc1.weight
    found = cast(block, "int8").mlp.fc1.weight.dequantize().float()
    step = weight.bfloat16().float().abs().amax(1, keepdim=True) / 127.5  # (out, 1)
    assert ((found - weight).abs() <= 0.52 * step + 0.01 * weight.abs()).all()
    steps = found / step
    assert ((steps - steps.round()).abs() < 0.02 * steps.abs() + 1e-3).all()


def test_trunks_share_the_blocks_that_were_cast_and_keep_what_nobody_else_has() -> None:
    template, _ = adapted(frozen_depth=3)
    trunks = [template.with_arm(depth, True, {}).trunk for depth in (1, 3)]
    before = {f"blocks.{name}": tensor.clone() for name, tensor in template.trunk.blocks.state_dict().items()}
    public = {name for name in before if name.startswith("blocks.0.")}
    cast_trunks(trunks, "bfloat16", public)
    assert trunks[0].blocks[0] is trunks[1].blocks[0]
    assert trunks[0].originals is trunks[1].originals and trunks[0].originals.keys() == before.keys() - public
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunks[0].originals.items())
    assert all(torch.equal(t, before[f"blocks.{n}"]) for n, t in template.trunk.blocks.state_dict().items())


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_blocks_that_were_cast_are_not_cast_again(precision: Any) -> None:
    """A second preparation keeps them, shares them with trunks that were not there, and names what it cannot do."""
    (model, _), world = adapted(frozen_depth=3), World(0, 1, torch.device("cpu"))
    arms = [model.with_arm(depth, False, {}) for depth in (3, 1)]
    exact = {name: tensor.clone() for name, tensor in model.trunk.blocks.state_dict().items()}
    prepare_trunks(arms[:1], Settings(precision), world)
    cast = [*arms[0].trunk.blocks]
    for asked in (precision, "auto", None):
        again = prepare_trunks(arms, Settings(asked), world)
        assert (again.precision, again.drift) == (precision, {})
        assert [*arms[0].trunk.blocks] == cast and [*arms[1].trunk.blocks] == cast[:1]
    with pytest.raises(UserError, match=f"are in {precision} already, not in float32; load the model again"):
        prepare_trunks(arms, Settings("float32"), world)
    assert all(torch.equal(kept, exact[name.removeprefix("blocks.")]) for name, kept in arms[1].trunk.originals.items())


def test_relative_positions_follow_the_precision() -> None:
    model, _ = adapted(frozen_depth=3)
    model.tokenizer.positions = Relative(2)
    nn.init.normal_(model.tokenizer.positions.tables)
    wanted = model.trunk(VIDEOS, [3])[3]
    cast_trunks([model.trunk], "bfloat16", set())
    told: list[Tensor] = []
    model.trunk.blocks[1].register_forward_pre_hook(
        lambda _, x, given: told.append(given["attn_mask"]), with_kwargs=True
    )
    found = model.trunk(VIDEOS, [3])[3]
    assert drift(wanted.h, found.h) < 0.05 and told[0].dtype == torch.bfloat16
    assert torch.equal(found.context.attn_mask, wanted.context.attn_mask)  # an arm gets it as it is


def test_each_precision_is_measured() -> None:
    seconds = measure_precisions(adapted()[0].trunk.blocks[0], torch.randn(2, 5, 24), Context())
    assert seconds.keys() == {"float32", "bfloat16", "float16"} and min(seconds.values()) > 0


def test_tokens_that_overflow_are_not_taken_for_tokens() -> None:
    h = torch.ones(1, 2, 3)
    assert drift(h, h) == 0 and drift(h, 1.1 * h) == pytest.approx(0.1, rel=1e-3)
    with pytest.raises(UserError, match="overflows in this precision"):
        drift(h, h / 0)


@torch.no_grad()
def test_the_library_itself_can_be_asked_while_its_blocks_are_in_a_file(tmp_path: Path) -> None:
    model, vit = adapted(frozen_depth=3)
    wanted = vit(IMAGES)
    streamed = on_disk(model.trunk, tmp_path / "blocks.safetensors")
    vit.blocks[0], vit.blocks[1] = streamed.blocks[0], streamed.blocks[1]
    with fill_on_call(vit.blocks, streamed.file):
        assert torch.equal(vit(IMAGES), wanted)
    assert all(is_on_meta(block) for block in vit.blocks[:2]) and not is_on_meta(vit.blocks[2])
    with pytest.raises(RuntimeError):
        vit(IMAGES)


def test_a_block_from_a_file_can_be_had_in_memory(tmp_path: Path) -> None:
    resident = adapted(frozen_depth=3)[0].trunk
    streamed = on_disk(resident, tmp_path / "blocks.safetensors", torch.float64)
    for index in range(3):
        made = load_block(streamed.blocks, index, streamed.file)
        wanted = resident.blocks[index].state_dict()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.state_dict().items())
        assert made is not streamed.blocks[index]


def test_angles_and_bias_are_in_the_precision_of_the_products() -> None:
    """Of frozen blocks and of trained ones; float32 angles would turn queries and keys in float32."""
    types: list[Any] = []

    class Told(nn.Module):
        def forward(self, h: Tensor, **context: Tensor) -> Tensor:
            types.append({name: tensor.dtype for name, tensor in context.items()})
            return h

    context = Context(torch.zeros(1, 2, 5, 5), torch.zeros(4, 12))
    model, _ = adapted(frozen_depth=3)
    model.arm.blocks["3"] = Told()
    taps = frozen.Taps(*torch.zeros(2, 1, 5, 24), context)
    model.arm.features(taps)
    with torch.autocast("cpu", torch.bfloat16):
        model.arm.features(taps)
    exact, low = ({"attn_mask": dtype, "rope": dtype} for dtype in (torch.float32, torch.bfloat16))
    assert types == [exact, low] and {each.dtype for each in context.to(torch.float16)} == {torch.float16}
