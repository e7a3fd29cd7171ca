"""Attention is counted alike whatever formulas torch has."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

from scaleup.sweeps.trace import ATTENTION, EMPTY, Trace, counter, empty_tensor

QUERY, KEY, VALUE = (2, 3, 10, 16), (2, 3, 14, 16), (2, 3, 14, 16)  # B, heads, N, D
SCORES = 2 * 2 * 3 * 10 * 14 * 16


def counted(backend: SDPBackend) -> tuple[int, int]:
    """FLOPs of attention forward, and with its backward."""
    query, key, value = (torch.rand(shape, requires_grad=True) for shape in (QUERY, KEY, VALUE))
    with counter() as made, sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(query, key, value)
        forward = made.get_total_flops()
        out.sum().backward()
    return forward, made.get_total_flops()


def planned() -> int:
    """The same as plans count it, on tensors without content."""
    query, key, value = (empty_tensor(*shape).requires_grad_() for shape in (QUERY, KEY, VALUE))
    with EMPTY, Trace() as trace:
        F.scaled_dot_product_attention(query, key, value).sum().backward()
    return trace.flops


def test_fused_attention_takes_the_products_that_it_fuses_and_computes_scores_once_more() -> None:
    forward, whole = counted(SDPBackend.MATH)
    assert forward == 2 * SCORES
    assert counted(SDPBackend.FLASH_ATTENTION) == (forward, whole + SCORES)


def test_every_fused_attention_is_counted_forward_and_backward() -> None:
    names = {f"{operation}" for operation in ATTENTION}
    kinds = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    assert names >= {f"aten._scaled_dot_product_{kind}{end}" for kind in kinds for end in ("", "_backward")}


@pytest.mark.parametrize("knows", ["fewer", "more"])
def test_what_torch_knows_changes_nothing(monkeypatch: pytest.MonkeyPatch, knows: str) -> None:
    before, step = planned(), counted(SDPBackend.FLASH_ATTENTION)
    for operation in ATTENTION:
        if knows == "more":
            monkeypatch.setitem(flop_registry, operation, lambda *args, **kwargs: 10**12)
        else:
            monkeypatch.delitem(flop_registry, operation, raising=False)
    assert planned() == before == step[1]
    assert counted(SDPBackend.FLASH_ATTENTION) == step
