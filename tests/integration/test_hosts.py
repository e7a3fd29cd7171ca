"""Two network namespaces as two hosts, by both launchers, as docs/cluster.md says."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.runs import losses

from scaleup.config.schema import Recipe
from scaleup.training.run import train

TOOL = Path(__file__).parents[2] / "tools" / "train.py"
HOSTS = {"10.77.0.1": "scaleup1", "10.77.0.2": "scaleup2"}


def ip(command: str) -> bool:
    return subprocess.run(["ip", *command.split()], capture_output=True, check=False).returncode == 0


@pytest.fixture
def hosts() -> Iterator[None]:
    """Namespaces scaleup1 and scaleup2, whose interfaces of the same names are two ends of a wire."""
    with ExitStack() as cleanup:
        for name in HOSTS.values():
            try:
                if not ip(f"netns add {name}"):
                    pytest.skip("this machine gives us no network namespaces")
            except FileNotFoundError:
                pytest.skip("this machine has no ip command")
            cleanup.callback(ip, f"netns del {name}")
        assert ip("link add scaleup1 netns scaleup1 type veth peer name scaleup2 netns scaleup2")
        for address, name in HOSTS.items():
            assert ip(f"-n {name} addr add {address}/24 dev {name}")
            assert ip(f"-n {name} link set {name} up") and ip(f"-n {name} link set lo up")
        yield


def torchrun(rank: int, hostfile: Path) -> list[str]:
    there = ["--master-addr=10.77.0.1", "--master-port=29500"]
    return ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1", *there]


def deepspeed(rank: int, hostfile: Path) -> list[str]:
    there = ["--master_addr", "10.77.0.1", "--master_port", "29500"]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(rank), *there]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_two_hosts_train_as_one_does(
    hosts: None, tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path, launcher: Callable[..., list[str]]
) -> None:
    changes = ["train.mixup=0", "model.backbone.kwargs.proj_drop_rate=0", "model.backbone.kwargs.drop_path_rate=0"]
    one, out, hostfile = tiny(*changes), tmp_path / "two", tmp_path / "hosts"
    train(one, {"model": one.arm})
    hostfile.write_text("".join(f"{address} slots=1\n" for address in HOSTS))
    processes = []
    for rank, name in enumerate(HOSTS.values()):
        tool = [sys.executable, *launcher(rank, hostfile), str(TOOL), str(tiny_path), f"out={out}", *changes]
        places = {"GLOO_SOCKET_IFNAME": name, "DS_ACCELERATOR": "cpu"}
        command = ["ip", "netns", "exec", name, *tool]
        processes.append(subprocess.Popen(command, env=os.environ | places, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert losses(out) == pytest.approx(losses(tmp_path / "out"), rel=1e-4)
