"""Products computed otherwise give the same, and only where they are meant to be."""

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.tools import script
from torch import nn
from torch.utils.checkpoint import checkpoint

from scaleup.model import kernels
from scaleup.model.kernels import Fast, computed, every_token


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_layer_gives_the_same_forward_and_backward(bias: bool, convolutions: list[tuple]) -> None:
    layer, x, weights = nn.Linear(64, 96, bias), numbers(2, 50, 64), numbers(2, 50, 96, seed=1)
    found: dict[str, list[Any]] = {}
    for name in ("library", "fast"):
        layer.zero_grad()
        given = x.clone().requires_grad_(True)
        out = computed(every_token, name)(layer, given)
        (out * weights).sum().backward()
        found[name] = [out, given.grad, *(parameter.grad for parameter in layer.parameters())]
    assert convolutions == [(96, 64, 1, 1)]
    assert found["fast"][0].stride() == found["library"][0].stride()
    for ours, wanted in zip(found["fast"], found["library"], strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("longest", "parts"), [(192, 1), (191, 2), (64, 3)])
def test_many_channels_are_summed_in_parts_where_nothing_trains(
    longest: int, parts: int, convolutions: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LONGEST", longest)
    layer, x = nn.Linear(192, 96), numbers(2, 50, 192)
    for _ in range(2):  # nothing that is given changes
        with torch.no_grad():
            assert torch.allclose(computed(every_token, "fast")(layer, x), layer(x), atol=1e-5)
    assert convolutions == 2 * [(96, shape, 1, 1) for shape in [len(each) for each in torch.empty(192).chunk(parts)]]
    computed(every_token, "fast")(layer, x)  # with gradients
    assert convolutions[2 * parts :] == [(96, 192, 1, 1)]


def test_only_large_float32_products_of_sequences_are_computed_otherwise(convolutions: list[tuple]) -> None:
    with Fast():
        nn.Linear(64, 8)(numbers(2, 50, 64))  # narrow, as LoRA's
        nn.Linear(64, 96)(numbers(2, 1, 64))  # one token
        nn.Linear(64, 96)(numbers(100, 64))  # no sequence
        nn.Linear(64, 96).bfloat16()(numbers(2, 50, 64).bfloat16())
        nn.Linear(64, 96).double()(numbers(2, 50, 64).double())
        with torch.autocast("cpu", torch.bfloat16):
            nn.Linear(64, 96)(numbers(2, 50, 64))
    nn.Linear(64, 96)(numbers(2, 50, 64))  # outside
    assert convolutions == []


@pytest.mark.parametrize("held", [2**24, 3 * 70 * 70, 1])
def test_attention_without_gradients_gives_the_same(
    held: int, convolutions: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LARGEST", held)
    query, key, value = numbers(2, 70, 3, 4, 16).permute(2, 0, 3, 1, 4)  # (B, H, N, d), as timm lays them out
    wanted = ((query @ key.transpose(-2, -1) / 4).softmax(-1)) @ value
    with torch.no_grad(), Fast():
        found = F.scaled_dot_product_attention(query, key, value)
    assert convolutions
    assert torch.allclose(found, wanted, atol=1e-5)


def test_attention_is_the_librarys_where_ours_would_differ_or_keep_all_scores(convolutions: list[tuple]) -> None:
    query, key, value = numbers(3, 2, 4, 70, 16)
    given: list[dict[str, Any]] = [{"attn_mask": numbers(70, 70)}, {"is_causal": True}, {"scale": 0.5}]
    for words in given:
        with torch.no_grad(), Fast():
            found = F.scaled_dot_product_attention(query, key, value, **words)
        assert torch.equal(found, F.scaled_dot_product_attention(query, key, value, **words))
    with torch.no_grad(), Fast():
        F.scaled_dot_product_attention(query[:, :, :1], key, value)  # the class token alone
        F.scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    with Fast():
        F.scaled_dot_product_attention(query, key, value)  # with gradients
    assert convolutions == []


def test_products_leave_attention_to_the_library(convolutions: list[tuple]) -> None:
    query, key, value = numbers(3, 2, 4, 70, 16)
    with torch.no_grad(), Fast("products"):
        found = F.scaled_dot_product_attention(query, key, value)
        nn.Linear(64, 96)(numbers(2, 50, 64))
    assert convolutions == [(96, 64, 1, 1)]
    assert torch.equal(found, F.scaled_dot_product_attention(query, key, value))


def test_blocks_are_computed_alike_when_they_are_computed_twice(convolutions: list[tuple]) -> None:
    layer, x = nn.Linear(64, 96), numbers(2, 50, 64).requires_grad_(True)
    checkpoint(computed(every_token, "fast"), layer, x, use_reentrant=False).sum().backward()
    assert len(convolutions) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_memory_that_is_kept_is_not_taken_anew() -> None:
    """In a process of its own: it is a setting of the process."""
    code = """
import resource, torch
from scaleup.model.kernels import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back, _ = faults(), keep_freed_memory()
print(given_back, faults(), faults())
"""
    done = script(code)
    given_back, _, kept = map(int, done.stdout.split())
    assert 10 * kept < given_back
