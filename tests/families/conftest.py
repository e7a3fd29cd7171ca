"""Every test that takes a ``family`` or a ``stored`` model runs once for each family."""

import pytest
import torch
from clip import StoredClip
from families import FAMILIES, Family, Stored


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would cost tiny models more than they give
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=FAMILIES, ids=lambda family: family.id)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="session")
def stored(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The family's model on disk."""
    kind = StoredClip if family.name.startswith("open_clip:") else Stored
    return kind(family, tmp_path_factory.mktemp("family") / "vit")
