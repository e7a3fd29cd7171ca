import pytest
import torch
from families import Stored, images

from scaleup.common import tensors


@torch.no_grad()
@pytest.mark.parametrize("shape", ["own", "oblong"])
def test_an_image_gives_bit_for_bit_what_the_library_gives(stored: Stored, shape: str) -> None:
    size = stored.size if shape == "own" else stored.oblong
    library, x = stored.library(size), images(size)
    wanted = library(x)
    model = stored.model(size).with_arm(1, True, {"any": ["a"]}).eval()
    assert wanted.isfinite().all() and wanted.std() > 1e-3
    assert torch.equal(stored.backbone(size).features(x), wanted)
    assert torch.equal(model.forward_features(x), wanted)
    assert torch.equal(model.forward_features(x[:, :, None]), wanted)


@torch.no_grad()
def test_every_tensor_counts(stored: Stored) -> None:
    """A tensor that made no difference could be lost without a test that sees it."""
    backbone, x = stored.backbone(), images(stored.size)
    wanted = backbone.features(x)
    state = backbone.state_dict()
    assert len(state) == len(set(tensors.hashes(state).values()))  # no two are alike
    for name, tensor in state.items():
        kept = tensor.clone()
        tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
        assert not torch.equal(backbone.features(x), wanted), name
        tensor.copy_(kept)
    assert torch.equal(backbone.features(x), wanted)
