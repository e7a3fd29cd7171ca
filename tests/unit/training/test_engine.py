import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.marks import at_length
from support.tools import LAUNCHER, SECONDS, forked
from torch import Tensor, nn

from scaleup.common import distributed
from scaleup.common.distributed import World, join
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Train
from scaleup.training.engine import Engine, parameter_groups

ZERO = [{"zero_stage": 0}, {"zero_stage": 1}, {"zero_stage": 2}, {"zero_stage": 3}]
ZERO += [{"zero_stage": stage, "offload": True} for stage in (1, 2, 3)]
STAGES = pytest.mark.parametrize("zero", ZERO, ids=str)


class ToyArm(nn.Module):
    """Parameters of every sort that an arm has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Module()
        self.gate.alpha = nn.Parameter(torch.ones(1))
        self.tokenizer = nn.Linear(4, 4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})


class Toy(nn.Module):
    def __init__(self, arm: ToyArm) -> None:
        super().__init__()
        self.arm = arm

    def forward(self, x: Tensor, head: str) -> Tensor:
        tokens = self.arm.tokenizer(x) if head == "a" else x
        return self.arm.heads[head](self.arm.blocks(tokens * self.arm.gate.alpha)).square().mean()


def engine_of(arm: ToyArm, zero: dict | None = None, **settings: float) -> Engine:
    return Engine(Toy(arm), Arm(**settings), Train(**zero or {}), 2, join())


def inputs(step: int) -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(step)) * 10 ** (step % 3)


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in module.state_dict().items()}


def by_hand(arm: ToyArm, heads: str, settings: Arm) -> None:
    """Plain torch: what has no gradient is left alone."""
    toy = Toy(arm)
    optimizer = torch.optim.AdamW(parameter_groups(arm, settings))
    for step, head in enumerate(heads):
        optimizer.zero_grad(set_to_none=True)
        toy(inputs(step), head).backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(arm.parameters(), settings.clip)
        optimizer.step()


@STAGES
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_training_is_adamw_with_clipping_and_rest(zero: dict, clip: float) -> None:
    """Datasets alternate, gradients differ in size from step to step: every rule shows in the weights."""
    settings = {"lr": 0.01, "gate_lr": 0.05, "weight_decay": 0.1, "clip": clip}
    arm, reference = ToyArm(), ToyArm()
    engine = engine_of(arm, zero, **settings)
    for step, head in enumerate("abbabaab"):
        engine.step(engine(inputs(step), head), 1.0)
    by_hand(reference, "abbabaab", Arm(**settings))
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(arm.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_clipping_changes_the_weights() -> None:
    """The test above would hold nothing if clipping made no difference."""
    clipped, free = ToyArm(), ToyArm()
    by_hand(clipped, "abbabaab", Arm(lr=0.01, clip=0.05))
    by_hand(free, "abbabaab", Arm(lr=0.01, clip=0.0))
    assert (clipped.heads["a"].weight - free.heads["a"].weight).abs().max() > 1e-3


@STAGES
def test_what_a_batch_does_not_use_stays_put_bit_for_bit(zero: dict) -> None:
    arm = ToyArm()
    engine = engine_of(arm, zero, lr=0.01, weight_decay=0.1)
    engine.step(engine(inputs(0), "a"), 1.0)  # now head a and the tokenizer have momentum
    before = bits(arm)
    engine.step(engine(inputs(1), "b"), 1.0)
    moved = {name for name, content in bits(arm).items() if content != before[name]}
    assert moved == {name for name in before if not name.startswith(("heads.a", "tokenizer"))}


@STAGES
def test_the_norm_is_that_of_the_whole_gradient_before_clipping(zero: dict) -> None:
    arm, reference = ToyArm(), ToyArm()
    engine = engine_of(arm, zero, clip=0.01)
    Toy(reference)(inputs(0), "a").backward()
    squares = [each.grad.square().sum() for each in reference.parameters() if each.grad is not None]
    expected = float(torch.stack(squares).sum().sqrt())
    assert expected > 0.01
    assert engine.step(engine(inputs(0), "a"), 1.0) == pytest.approx(expected, rel=1e-5)


def test_a_single_process_copies_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What DeepSpeed would send to other ranks is all of them, end to end."""
    engine = engine_of(ToyArm())
    monkeypatch.setattr(engine.engine, "flatten", lambda tensors: pytest.fail("gradients are copied"))
    assert engine.step(engine(inputs(0), "a"), 1.0) > 0


@STAGES
def test_what_is_frozen_inside_an_arm_is_in_no_group_and_stays(zero: dict) -> None:
    arm = ToyArm()
    arm.blocks[0].weight.requires_grad_(False)
    before = bits(arm)
    engine = engine_of(arm, zero, lr=0.01, weight_decay=0.1)
    for step in range(3):
        engine.step(engine(inputs(step), "a"), 1.0)
    assert arm.blocks[0].weight.grad is None
    assert sum(each.numel() for each in engine.parameters) == sum(p.numel() for p in arm.parameters()) - 16
    optimizer = getattr(engine.engine.optimizer, "optimizer", engine.engine.optimizer)
    state = sum(each["exp_avg"].numel() for each in optimizer.state.values() if each)
    assert 0 < state <= sum(each.numel() for each in engine.parameters)
    moved = {name for name, content in bits(arm).items() if content != before[name]}
    assert moved == {name for name in before if not name.startswith(("blocks.0.weight", "heads.b"))}


def test_adapters_decay_as_matrices_do_and_scales_not_at_all() -> None:
    arm = nn.Module()
    shapes = {"lora_A": (2, 4), "lora_B": (4, 2), "lora_magnitude_vector": (4,), "ia3_l": (4, 1)}
    arm.blocks = nn.ModuleDict({name: nn.ParameterDict({"default": torch.ones(size)}) for name, size in shapes.items()})
    groups = parameter_groups(arm, Arm(weight_decay=0.1))
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    found = {name: decays[id(arm.blocks[name]["default"])] for name in shapes}
    assert found == {"lora_A": 0.1, "lora_B": 0.1, "lora_magnitude_vector": 0.0, "ia3_l": 0.0}


def test_the_gate_has_its_own_rate_and_follows_the_schedule() -> None:
    for factor in (1.0, 0.25):
        arm = ToyArm()
        engine = engine_of(arm, lr=0.001, gate_lr=0.04)
        engine.step(engine(inputs(0), "a"), factor)
        assert abs(float(arm.gate.alpha.detach()) - 1) == pytest.approx(0.04 * factor, rel=1e-3)  # Adam's first step
        assert (arm.blocks[0].weight - ToyArm().blocks[0].weight).abs().max() <= 0.0011 * factor + 1e-5


def test_gate_norms_and_biases_do_not_decay() -> None:
    arm = ToyArm()
    before = bits(arm)
    engine = engine_of(arm, lr=0.1, gate_lr=0.1, weight_decay=0.5)
    engine.step(sum(each.sum() * 0 for each in arm.parameters()), 1.0)  # a part in the loss, but no gradient
    moved = {name for name, content in bits(arm).items() if content != before[name]}
    assert moved == {name for name, each in arm.named_parameters() if each.dim() == 2}


def test_several_engines_do_not_disturb_each_other() -> None:
    def train(rates: list[float]) -> list[dict[str, bytes]]:
        arms = [ToyArm() for _ in rates]
        engines = [engine_of(arm, lr=lr) for arm, lr in zip(arms, rates, strict=True)]
        for step in range(3):
            for engine in engines:
                engine.step(engine(inputs(step), "a"), 1.0)
        return [bits(arm) for arm in arms]

    assert train([0.01, 0.02]) == train([0.01]) + train([0.02])


def meet(rank: int, meeting: str, told: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    lists = [world.join_lists(each) for each in ([], ["a"][:rank], [str(rank)] * 2)]
    told.put((rank, [*lists, world.gather_numbers(rank)]))
    dist.destroy_process_group()


def test_what_ranks_have_is_joined_in_their_order(tmp_path: Path) -> None:
    """None has anything, one has, both have."""
    told = forked.Queue()
    ranks = [forked.Process(target=meet, args=(rank, str(tmp_path / "meeting"), told)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(told.get(timeout=SECONDS) for _ in ranks)
    for process in ranks:
        process.join()
    assert found[0] == found[1] == [[], ["a"], ["0", "0", "1", "1"], [0, 1]]
    assert World(0, 1, torch.device("cpu")).join_lists(["alone"]) == ["alone"]


OF_NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, NCCL version 2.27.3"
LITTLE = (
    "ncclSystemError: System call failed. \nLast error:\nError while creating shared memory segment /dev/shm/nccl-1"
)
AWAY = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
LOST = "another of the 2 ranks no longer answers; "


@pytest.mark.parametrize(
    ("error", "said", "detail"),
    [
        (
            dist.DistBackendError(f"{OF_NCCL}\n{LITTLE}"),
            "NCCL failed on this rank: ",
            f"{' '.join(LITTLE.split())}; it needs",
        ),
        (dist.DistBackendError(f"{OF_NCCL}\n{AWAY}"), LOST, f"({OF_NCCL})"),
        (RuntimeError(CLOSED), LOST, f"({CLOSED})"),
    ],
)
def test_why_ranks_are_no_longer_together(error: RuntimeError, said: str, detail: str) -> None:
    with pytest.raises(UserError) as raised, World(1, 2, torch.device("cpu")).together():
        raise error
    assert str(raised.value).startswith(f"rank 1 stops, because {said}") and detail in str(raised.value)


@pytest.mark.parametrize("meeting", ["init_process_group", "new_group"])
def test_a_rank_that_does_not_reach_the_others_says_so(meeting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the ranks' own group, or by that of what is on the host."""

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with a timeout\nand more")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, meeting, refused)
    distributed._host_group.cache_clear()
    with pytest.raises(
        UserError, match=r"^rank 1 does not reach the others: Gloo connectFullMesh failed with a timeout;"
    ):
        distributed._meet(torch.device("cpu"))


THREADS = """
import atexit, os, sys
import torch
torch.ones(2) @ torch.ones(2)
before = len(os.listdir("/proc/self/task"))
def more():  # threads of gloo have no name of their own in every release of torch
    return len(os.listdir("/proc/self/task")) > before
atexit.register(lambda: print(more(), flush=True))  # what is registered first runs last
from scaleup.common.distributed import join
join()
torch.distributed.all_reduce(torch.ones(2))
print(more())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed by Linux alone")
@pytest.mark.parametrize(("launcher", "ranks"), [((), 1), *at_length((LAUNCHER, 2))])
def test_no_thread_of_gloo_outlives_python(tmp_path: Path, launcher: tuple[str, ...], ranks: int) -> None:
    """One that lets a tensor go while the interpreter ends takes the process down, once in hundreds of runs."""
    (tmp_path / "threads.py").write_text(THREADS)
    done = subprocess.run([sys.executable, *launcher, tmp_path / "threads.py"], capture_output=True, text=True)
    assert (done.stdout.count("True"), done.stdout.count("False")) == (ranks, ranks), done.stderr
