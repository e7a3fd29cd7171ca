"""How arms make features of tokens, against pools that are slow and obvious."""

import operator
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_checkpoint
import torch
from safetensors.torch import load_file, save_file
from support.programs import only
from support.runs import bytes_of, weights
from test_model import IMAGES, VARIANTS, VIDEOS, adapted
from torch import Tensor, nn

from scaleup.backbones.build import build
from scaleup.checkpoint.model_directory import Pool
from scaleup.cli.cache import frozen_depths
from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.schema import Arm, Recipe
from scaleup.evaluation.overlay import token_relevance
from scaleup.model.adapter import Adapt
from scaleup.model.build import load, load_run
from scaleup.model.pool import AttentivePool, init_pool
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.conversion import export
from scaleup.sweeps import costs
from scaleup.sweeps.trace import counter
from scaleup.training.run import Run, train
from scaleup.training.token_cache import make

ATTENTIVE = Pool("attentive", queries=3, heads=4, depth=1)
SETTINGS: dict[str, Any] = {"pool": "attentive", "pool_queries": 3, "pool_heads": 4}
ARMS = {
    "read": Arm(frozen_depth=3, **SETTINGS),
    "late": Arm(frozen_depth=2, gate=True, **SETTINGS),
    "deep": Arm(frozen_depth=3, taps=[1, 2], **SETTINGS),
    "head": Arm(frozen_depth=3, gate=True),
}
HEADS = {"motion": ["left", "right", "up"]}
TOKENS = torch.randn(2, 10, 24)


def pooled(pool: Pool = ATTENTIVE, frozen_depth: int = 4, adapt: str = "none", **kwargs: Any) -> TubeViT:
    template, _ = adapted(frozen_depth, **kwargs)
    return template.with_arm(frozen_depth, False, HEADS, adapt=Adapt(adapt), pool=pool)


def attentive(pool: Pool) -> AttentivePool:
    """One with no two tensors alike, biases of keys and values among them."""
    built = AttentivePool(nn.LayerNorm(24), 24, pool)
    for parameter in built.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return built


@torch.no_grad()
def test_each_query_reads_as_in_attention_of_torch() -> None:
    pool = attentive(ATTENTIVE)
    slow = nn.MultiheadAttention(24, 4, batch_first=True)
    slow.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.k.weight, pool.v.weight]))
    slow.in_proj_bias.copy_(torch.cat([pool.q.bias, torch.randn(24), pool.v.bias]))
    slow.out_proj.load_state_dict(pool.proj.state_dict())
    x = pool.norm(TOKENS)
    expected, _ = slow(pool.queries.expand(2, -1, -1), x, x)
    torch.testing.assert_close(pool(TOKENS, {}), expected.flatten(1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_blocks_below_the_queries_are_self_attention() -> None:
    deep, flat = attentive(Pool("attentive", 3, 4, depth=3)), attentive(ATTENTIVE)
    assert len(deep.blocks) == 2
    flat.load_state_dict({k: v for k, v in deep.state_dict().items() if not k.startswith("blocks.")})
    flat.norm = nn.Identity()
    x = deep.blocks[1](deep.blocks[0](deep.norm(TOKENS)))
    torch.testing.assert_close(deep(TOKENS, {}), flat(x, {}))
    assert not torch.allclose(deep(TOKENS, {}), flat(deep.norm(TOKENS), {}), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
def test_the_mean_is_of_all_tokens_after_the_norm_of_the_backbone(kwargs: dict[str, Any]) -> None:
    model = pooled(Pool("mean", 1, 16, 1), **kwargs)
    taps = model.arm_inputs(VIDEOS)
    assert not isinstance(taps, Tensor)
    tail: Any = model.arm.tail
    norm = tail.norm if not isinstance(tail.norm, nn.Identity) else tail.fc_norm
    assert torch.equal(model.forward_features(VIDEOS), torch.stack([norm(each).mean(0) for each in taps.h]))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mean", "attentive"])
def test_tokens_of_other_depths_stand_beside_the_last_each_with_a_norm_of_its_own(kind: str) -> None:
    model = pooled(Pool(kind, 2, 4, 1, taps=[3, 1]), frozen_depth=4)  # type: ignore[arg-type]
    for parameter in model.arm.pool.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    norms = model.arm.pool.lower_norms
    taps = model.trunk(VIDEOS, [1, 2, 3, 4])  # type: ignore[misc]
    tokens = torch.cat([norms["3"](taps[3].h), norms["1"](taps[1].h), model.arm.pool.norm(taps[4].h)], dim=1)
    alone = pooled(Pool(kind, 2, 4, 1)).arm.pool  # type: ignore[arg-type]
    alone.load_state_dict(model.arm.pool.state_dict(), strict=False)
    alone.norm = nn.Identity()
    assert torch.equal(model.forward_features(VIDEOS), alone(tokens, {}))


def test_tokens_of_every_depth_that_is_read_count_for_what_is_seen() -> None:
    model = pooled(Pool("attentive", 2, 4, 1, taps=[1, 3]))
    x = VIDEOS[:1]
    taps = model.arm_inputs(x)
    assert not isinstance(taps, Tensor)

    def log_probability(h: Tensor, lower: dict[int, Tensor]) -> float:
        return model.arm(taps._replace(h=h, lower=lower), "motion").log_softmax(-1)[0, 1].item()

    def nudged(tokens: Tensor, index: int, step: float) -> Tensor:
        changed = tokens.clone()
        changed[0, 1 + index] += step * (tokens[0, 1:].mean(0) - tokens[0, 1 + index])
        return changed

    lower, expected = dict(taps.lower), []
    with torch.no_grad():
        for index in range(taps.h.shape[1] - 1):
            before, after = (
                log_probability(nudged(taps.h, index, step), {d: nudged(h, index, step) for d, h in lower.items()})
                for step in (-1e-2, 1e-2)
            )
            expected.append(max(before - after, 0) / 2e-2)
    torch.testing.assert_close(token_relevance(model, x, "motion", 1), torch.tensor(expected), rtol=2e-2, atol=2e-3)


def test_a_cache_serves_every_depth_that_arms_read(tiny: Callable[..., Recipe]) -> None:
    assert frozen_depths(tiny("arms={new: {taps: [2], pool: mean, frozen_depth: 3}, last: {frozen_depth: 1}}")) == [
        1,
        2,
        3,
    ]


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    pools = [attentive(Pool("attentive", 1, 4, 2)) for _ in range(3)]
    for pool, seed in zip(pools, (0, 0, 1), strict=True):
        pool.norm, pool.blocks[0].norm1, pool.blocks[0].norm2 = (nn.Identity() for _ in range(3))
        init_pool(pool, torch.Generator().manual_seed(seed))
    one, other, third = (bytes_of(pool.state_dict()) for pool in pools)
    assert one == other and not set(one.values()) & {third[name] for name in one if "bias" not in name}
    assert not pools[0].v.bias.any()


@pytest.mark.parametrize("frozen_depth", [2, 4])
def test_a_frozen_trunk_that_is_read_has_no_backward_pass_through_a_block(frozen_depth: int) -> None:
    model = pooled(frozen_depth=frozen_depth).train()
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda *args: outputs.append(args[-1]))
    model(VIDEOS, "motion").sum().backward()
    assert len(outputs) == 4 and not any(output.requires_grad for output in outputs)
    learnt = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learnt == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[1] for name in learnt} == {"pool", "heads"}


@torch.no_grad()
@pytest.mark.parametrize("pool", [Pool("mean", 1, 16, 1), Pool("attentive", 2, 3, 2)], ids=["mean", "attentive"])
@pytest.mark.parametrize("kernels", ["library", "lean"])
def test_every_token_is_read_where_the_backbone_reads_its_first_alone(pool: Pool, kernels: str) -> None:
    model = pooled(pool, frozen_depth=2, adapt="full").eval()
    model.arm.kernels = kernels
    taps: Any = model.arm_inputs(IMAGES)
    h = taps.h
    for index, block in model.arm.blocks.items():
        h = block(h, **taps.context.at(int(index)))
    assert torch.equal(model.arm.features(taps), model.arm.pool(h, {}))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "delta"])
def test_a_pool_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_file(build("timm:vit_tiny_patch16_224", dict(test_checkpoint.KWARGS), (16, 24)).source.state_dict(), base)
    model, x = test_checkpoint.made(base).with_arm(3, True, HEADS, pool=ATTENTIVE).eval(), test_checkpoint.VIDEOS
    model.save_pretrained(tmp_path / "model", kind)
    again = load(tmp_path / "model")
    assert again.config.pool == ATTENTIVE and torch.equal(again(x, "motion"), model(x, "motion"))
    assert "queries: 3, heads: 4" in (tmp_path / "model" / "README.md").read_text()


@torch.no_grad()
def test_an_arm_goes_on_from_a_pool_of_the_same_kind_and_draws_another() -> None:
    first = pooled()
    same, other = (first.with_arm(4, False, HEADS, seed=1, pool=Pool("attentive", 3, heads, 1)) for heads in (4, 6))
    assert bytes_of(same.arm.pool.state_dict()) == bytes_of(first.arm.pool.state_dict())
    assert torch.equal(same(VIDEOS, "motion"), first(VIDEOS, "motion"))
    assert not torch.equal(other.arm.pool.queries, first.arm.pool.queries)
    assert first.with_arm(4, False, HEADS).arm.pool is None


@pytest.fixture(scope="module")
def runs(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three arms on one trunk, and one of them alone."""
    directory = tmp_path_factory.mktemp("pools")
    together = ARMS | {"mean": Arm(frozen_depth=2, adapt="none", pool="mean")}
    for out, each in {"together": together, **{name: {name: arm} for name, arm in ARMS.items()}}.items():
        train(recipe.load(tiny_path, [f"out={directory / out}", "train.steps=4", "train.mixup=0", "arms={}"]), each)
    return directory


def test_a_head_trains_beside_readers_of_all_tokens_as_alone(runs: Path) -> None:
    """Its last frozen block is computed for the class token alone in both, and for all tokens beside it."""
    assert weights(runs / "together" / "head") == weights(runs / "head" / "head")


@pytest.mark.parametrize("name", ["read", "late", "deep"])
def test_an_arm_with_a_pool_trains_in_a_sweep_as_alone(name: str, runs: Path) -> None:
    assert weights(runs / "together" / name) == weights(runs / name / name)
    model = load(runs / "together" / name)
    assert model.config.pool == replace(ATTENTIVE, taps=[1, 2] if name == "deep" else [])
    assert not torch.equal(model.arm.pool.q.bias, torch.zeros(24))


@pytest.mark.parametrize("name", ["read", "deep"])
def test_an_arm_learns_from_a_token_cache_what_it_learns_live(name: str, runs: Path, tmp_path: Path) -> None:
    read = recipe.load(runs / name / "recipe.yaml", [f"out={tmp_path / 'out'}"])
    make(read, [3, *ARMS[name].taps], tmp_path / "cache", precision="float32")
    read.trunk.cache = str(tmp_path / "cache")
    train(read, {name: ARMS[name]})
    live, cached = (load_file(path / name / "model.safetensors") for path in (runs / name, tmp_path / "out"))
    for key, tensor in live.items():
        torch.testing.assert_close(cached[key], tensor, rtol=1e-5, atol=1e-6)


def test_the_backbones_own_norm_stays_as_it_is_beside_a_pool(runs: Path) -> None:
    models = load_run(runs / "together")
    pooled = [model for name, model in models.items() if name != "head"]
    assert len({str(bytes_of(model.arm.tail.state_dict())) for model in pooled}) == 1
    assert not torch.equal(models["read"].arm.pool.norm.weight, models["mean"].arm.pool.norm.weight)


def test_a_program_reads_with_the_pool_and_timm_has_no_place_for_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(["video"], monkeypatch)
    written = export(runs / "together" / "read", "torch", tmp_path / "program")
    assert max(written.differences.values()) < 1e-5
    with pytest.raises(UserError, match="its features come from a pool of its own"):
        export(runs / "together" / "read", "timm", tmp_path / "timm")


def test_what_a_pool_computes_is_planned(tiny: Callable[..., Recipe]) -> None:
    read = tiny("arms={}", "train.kernels=library")
    arms = {"own": Arm(frozen_depth=3), "read": Arm(frozen_depth=3, **SETTINGS | {"pool_depth": 2})}
    counted = {name: step_flops(model, read) for name, model in Run(read, arms).models.items()}
    planned = costs.step_flops(read, arms)
    assert planned["read"] - planned["own"] == pytest.approx(counted["read"] - counted["own"], rel=0.05)


def step_flops(model: TubeViT, read: Recipe) -> float:
    """Operations of an arm's passes over a batch, the mean of images and videos by the weights of their sets."""
    flops, weights = [], [each.weight for each in read.data.train.values()]
    for frames in (8, 1):
        clips = torch.zeros(read.data.batch, 3, frames, *model.preprocess.size)
        taps = model.arm_inputs(clips if frames > 1 else clips[:, :, 0])
        with counter() as counted:
            features = model.arm.features(taps)
            sum(head(features).sum() for head in model.arm.heads.values()).backward()
        flops.append(counted.get_total_flops())
    assert list(read.data.train) == ["videos", "images"]
    return sum(map(operator.mul, flops, weights)) / sum(weights)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("arms={new: {taps: [2], pool: mean, frozen_depth: 2}}", "arms.new.taps: 2 is not below frozen_depth, 2"),
        ("arms={new: {taps: [1, 1], pool: mean, frozen_depth: 2}}", "arms.new.taps: [1, 1] names a depth twice"),
        (
            "arms={new: {taps: [1], frozen_depth: 2}}",
            "arms.new.taps: the backbone's own pool reads no other depth; allowed are pool: ",
        ),
        ("arm.pool=attention", "arm.pool: 'attention'"),
        ("arm.pool_depth=5", "arm.pool_depth: 5 is not a whole number between 1 and 4"),
        ("arm.pool_queries=0", "arm.pool_queries: 0 is not a whole number of at least 1"),
    ],
)
def test_a_pool_that_cannot_be_is_a_mistake(change: str, sentence: str, tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        tiny(change)


def test_heads_that_do_not_divide_the_width_are_named(tiny: Callable[..., Recipe]) -> None:
    sentence = (
        "arm 'read': pool_heads 16 does not divide the 24 channels of a token; allowed are 1, 2, 3, 4, 6, 8, 12, 24"
    )
    with pytest.raises(UserError, match=sentence):
        Run(tiny("arms={}"), {"read": Arm(frozen_depth=3, pool="attentive")})
