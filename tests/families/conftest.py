"""Every test that takes a ``family`` or a ``stored`` model runs once for each family.

``--write-page`` writes the table of docs/families.md from the outcome: make families.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator

import families_page
import pytest
import torch
from clip import StoredClip
from families import FAMILIES, Family, Stored

OUTCOMES = pytest.StashKey[dict[tuple[str, str], set[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-page", action="store_true", help="write the table of docs/families.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = defaultdict(set)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.path.stem in families_page.COLUMNS:
        item.config.stash[OUTCOMES][item.callspec.params["family"].name, item.path.stem].add(report.outcome)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-page", False):
        outcomes = session.config.stash[OUTCOMES]
        families_page.write({pair: outcomes[pair] == {"passed"} for pair in families_page.PAIRS})


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
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
