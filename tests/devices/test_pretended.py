"""The pretended GPU refuses what a GPU refuses, and counts what waits."""

import pretended
import pytest
import torch
import torch.distributed as dist
from pretended import Refused, gpu
from torch import nn


def test_what_a_gpu_refuses() -> None:
    with gpu():
        on, host = torch.ones(3, device="cuda"), torch.ones(3)
        for wrong in (
            lambda: on + host,
            lambda: nn.Linear(3, 3)(on),
            lambda: torch.cat([on, host]),
            lambda: torch.stack([on.sum(), torch.tensor(0.0)]),
            lambda: on.numpy(),
            lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
            lambda: dist.all_reduce(host),
        ):
            with pytest.raises(Refused):
                wrong()
    assert (on + host).tolist() == [2, 2, 2]  # outside it is a tensor of the host


def test_where_tensors_are() -> None:
    with gpu():
        model = nn.Linear(3, 3).to("cuda")
        x = torch.ones(2, 3).to("cuda", non_blocking=True)
        loss = model(x).sum()
        loss.backward()
        tensors = (model.weight, model.weight.data, model.weight.grad, x.cpu().to("cuda"), x.half(), loss)
        assert all(each.device.type == "cuda" for each in tensors)
        assert x.cpu().device.type == "cpu" and x.to("meta").device.type == "meta"
        assert torch.zeros_like(x).is_cuda and not torch.zeros(3).is_cuda


@pytest.mark.parametrize(
    ("call", "kinds"),
    [
        (lambda x: x.sum().item(), ["wait"]),
        (lambda x: x.tolist(), ["wait"]),
        (lambda x: x[x > 0], ["wait"]),
        (lambda x: x.cpu(), ["download", "wait"]),
        (lambda x: torch.ones(3).to(x.device), ["upload", "wait"]),
        (lambda x: torch.ones(3).to(x.device, non_blocking=True), ["upload", "wait"]),
        (lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True), ["upload"]),
        (lambda x: x.copy_(torch.ones(3).pin_memory(), non_blocking=True), ["upload"]),
        (lambda x: torch.tensor([1.0], device=x.device), ["upload"]),
        (lambda x: torch.cuda.synchronize(), ["wait"]),
        (lambda x: (x @ x).relu(), []),
    ],
)
def test_what_waits_is_counted(call, kinds: list[str]) -> None:
    with gpu() as events:
        x = torch.ones(3, device="cuda")
        events.take()
        call(x)
        assert sorted({kind for kind, _ in events.take()}) == kinds
    assert not torch.cuda.is_available() and pretended.EVENTS.total("wait") == 0


def test_memory_is_counted() -> None:
    with gpu():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        x = torch.ones(1000, device="cuda")
        y = x * 2
        assert torch.cuda.memory_allocated() - before == 8000
        del y
        x.cpu()
        assert torch.cuda.memory_allocated() - before == 4000
        assert torch.cuda.max_memory_allocated() - before == 8000
