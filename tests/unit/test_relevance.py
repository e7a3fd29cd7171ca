"""What speaks for a class, and where it is drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scaleup.common.errors import UserError
from scaleup.config.schema import Backbone, Input, Model, Tube
from scaleup.data.stream import frames
from scaleup.evaluation import overlay
from scaleup.evaluation.overlay import paint_relevance, token_boxes, token_relevance
from scaleup.model.build import fresh
from scaleup.model.trunk import Taps
from scaleup.model.tubes import TubeSpec
from scaleup.model.tubevit import TubeViT

HEADS = {"motion": ["left", "right", "up"]}


def model(frozen: int) -> TubeViT:
    kwargs = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    tubes = {"long": Tube([4, 4, 4], [4, 16, 16], [0, 2, 2], [1, 2, 1])}
    described = Model(None, Backbone("vit_ti", kwargs), Input(8, [32, 32], 8), tubes=tubes)
    return fresh(described, HEADS, 0).with_arm(frozen, frozen > 0, HEADS).eval()


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("frozen", [0, 2])
def test_relevance_is_what_a_token_adds(frozen: int, target: int) -> None:
    """Against finite differences: moving one token from the mean of all changes the logarithm by its relevance."""
    made, x = model(frozen), torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    if made.arm.gate is not None:
        made.arm.gate.alpha.data.fill_(0.5)
    found = token_relevance(made, x, "motion", target)
    z0 = made.tokenizer(x)
    taps = made.trunk(x, [frozen])[frozen] if made.trunk is not None else Taps(z0, z0)

    arm, exact = made.arm.double(), taps.z0.detach().double()

    def value(token: int, scale: float) -> float:
        h = taps.h.detach().double()
        mean = h[:, 1:].mean(1)
        h[:, token] = mean + scale * (h[:, token] - mean)
        return arm(Taps(exact, h), "motion").log_softmax(-1)[0, target].item()

    slow = [(value(token, 1 + 1e-5) - value(token, 1 - 1e-5)) / 2e-5 for token in range(1, taps.h.shape[1])]
    assert found.tolist() == pytest.approx(np.maximum(slow, 0), abs=1e-5)
    assert max(slow) - min(slow) > 1e-3  # tokens differ, so that the comparison says something


def test_every_pixel_gets_the_mean_of_the_tokens_that_cover_it() -> None:
    size = (8, 32, 32)
    specs = [TubeSpec("a", (1, 8, 8), (4, 8, 8)), TubeSpec("b", (4, 4, 4), (4, 16, 16), (0, 2, 2), (1, 2, 1))]
    count = sum(spec.tokens(size) for spec in specs)
    relevance = torch.rand(count, generator=torch.Generator().manual_seed(0))
    expected, number = [[[[] for _ in range(32)] for _ in range(32)] for _ in range(8)], 0
    for spec in specs:
        t, h, w = spec.places(size)
        for i in range(len(t)):
            for j in range(len(h)):
                for k in range(len(w)):
                    for a in range(t[i, 0], t[i, -1] + spec.kernel[0]):
                        for b in range(h[j, 0], h[j, -1] + spec.kernel[1]):
                            for c in range(w[k, 0], w[k, -1] + spec.kernel[2]):
                                expected[a][b][c].append(relevance[number].item())
                    number += 1
    slow = np.array([[[np.mean(each) if each else 0 for each in row] for row in plane] for plane in expected])
    assert paint_relevance(relevance, specs, size).numpy() == pytest.approx(slow / slow.max(), abs=1e-6)
    assert number == count == sum(len(token_boxes(spec, size)) for spec in specs)


def test_an_overlay_is_red_where_it_looks_and_says_what_it_sees(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(1)
    made, clip = model(2), torch.randint(0, 256, (3, 8, 32, 32), dtype=torch.uint8, generator=noise)
    pictures = overlay.overlay(made, clip, "motion")
    assert pictures.shape == (8, 32, 32, 3) and pictures.dtype == np.uint8
    x = made.preprocess(clip[None])
    best = int(made(x, "motion").argmax())
    relevance = token_relevance(made, x, "motion", best)
    heat = paint_relevance(relevance, made.tokenizer.specs((8, 32, 32)), (8, 32, 32)).numpy()
    for channel, colour in enumerate((255, 40, 0)):
        expected = (1 - 0.7 * heat) * clip[channel].numpy() + 0.7 * heat * colour
        assert pictures[:, 18:, :, channel] == pytest.approx(expected[:, 18:], abs=0.6)  # below the letters
    assert heat[:, 18:].max() > 0.1 and (pictures[:, :14] == 255).any()
    assert overlay.overlay(made, clip[:, 0], "motion").shape == (1, 32, 32, 3)
    overlay.write([pictures, pictures], tmp_path / "seen.mp4", 8)
    assert len(list(frames(str(tmp_path / "seen.mp4")))) == 16
    overlay.write([pictures, pictures], tmp_path / "seen.png", 8)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "seen.png")), pictures[4])
    assert {path.name for path in tmp_path.iterdir()} == {"seen.mp4", "seen.png"}
    with pytest.raises(UserError, match=r"must be \.mp4 or \.png, not 'seen\.gif'"):
        overlay.write([pictures], "seen.gif", 8)


@pytest.mark.parametrize("fps", [12.5, 23.976, 30 / 1.001, 1 / 3, 0.25])
def test_an_overlay_is_as_long_as_its_video(fps: float, tmp_path: Path) -> None:
    overlay.write([np.zeros((8, 32, 32, 3), np.uint8)], tmp_path / "seen.mp4", fps)
    assert [second for second, _ in frames(str(tmp_path / "seen.mp4"))] == pytest.approx(
        [number / fps for number in range(8)], rel=1e-3
    )
