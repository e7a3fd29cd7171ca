"""Several ranks, each with a pretended GPU of its own."""

from pathlib import Path

import pytest
from pretended import gpu
from support.marks import at_length
from support.runs import bits
from support.tools import Running

from scaleup.common.distributed import own_device
from scaleup.common.errors import UserError

GPU = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pretended
pretended.entered = pretended.gpu()  # to the end of the process
pretended.entered.__enter__()
"""
RESUMED = """
import sys
from scaleup.config import recipe
from scaleup.evaluation.accuracy import evaluate
from scaleup.model.build import load
from scaleup.training.run import train

path, out, *changes = sys.argv[1:]
def read(name):
    return recipe.load(path, ["train.steps=2", "arm.frozen_depth=1", "arm.gate=true", f"out={out}/{name}", *changes])
train(read("whole"))
assert train(read("pieces"), stop_after=0).stopped == 1
train(read("pieces"))
shards = read("whole").data.train["videos"].shards
assert evaluate({"model": load(f"{out}/whole/model")}, shards, "1x1", workers=0)["model"].samples == 12
"""


@pytest.mark.parametrize(
    "changes",
    [
        ["train.zero_stage=3"],
        ["train.zero_stage=2", "train.offload=true"],
        *at_length(["train.zero_stage=1", "train.offload=true"], ["train.zero_stage=3", "train.offload=true"]),
        *at_length(["train.zero_stage=2"], ["train.zero_stage=1"], []),
    ],
)
def test_two_ranks_go_on_where_they_were_stopped(changes: list[str], tiny_path: Path, tmp_path: Path) -> None:
    """Also where the optimizer's state is on the host, which NCCL does not take."""
    done = Running(["-c", RESUMED, str(tiny_path), str(tmp_path), *changes], ranks=2, before=GPU).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert bits(tmp_path / "whole") == bits(tmp_path / "pieces")


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with gpu(), pytest.raises(UserError, match=r"^rank 1 of this machine has no GPU: there is 1; start at most 1 "):
        own_device()
