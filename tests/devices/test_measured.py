"""What a bench measures on a GPU is the GPU: its time to the end of its work, its memory, its name; peers are on it."""

import pytest
from pretended import gpu

from bench.measure import cost, machine, timed
from bench.sides import PEERS, TINY

pytest.importorskip("transformers")
PEER = PEERS["ViT on each of 8 frames, LoRA in every block"]


def test_a_peer_is_measured_on_the_device() -> None:
    with gpu() as events:
        side = PEER(TINY, batch=2)
        side.step()  # means are uploaded once
        events.take()
        assert timed(side.step)() > 0 and timed(side.infer)() > 0
        assert events.total("wait") == 4 and not events.total("upload")
        assert 0 < cost(PEER, (TINY,), 1)["peak_bytes"] < 2**30  # not those of the process
        assert machine()["device"] == "pretended"
    assert "device" not in machine()
