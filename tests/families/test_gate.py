import pytest
import torch
from families import HEADS, Stored, images, videos


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_closed_gate_is_no_gate_an_open_one_is_and_it_learns(stored: Stored, kind: str) -> None:
    template = stored.model()
    x = images(stored.size) if kind == "image" else videos(stored.size)
    closed, without = (template.with_arm(1, gate, HEADS).eval() for gate in (True, False))
    gate = closed.arm.gate
    assert gate is not None and without.arm.gate is None
    logits = closed(x)
    assert torch.equal(logits, without(x))
    logits.logsumexp(dim=1).mean().backward()
    assert gate.alpha.grad is not None and gate.alpha.grad.isfinite().all() and gate.alpha.grad.abs().item() > 0
    gate.alpha.data.fill_(0.5)
    assert not torch.allclose(closed(x), logits, rtol=1e-3)
