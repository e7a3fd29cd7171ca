"""The eight real films, as they are, through the tools: packed, checked, predicted. SCALEUP_REAL names their folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tools import tool

from scaleup.config.schema import Recipe
from scaleup.data.shards import Shards
from scaleup.model.build import fresh

FILMS = Path(os.environ.get("SCALEUP_REAL", "none")) / "films"
NAMES = ["Megamind", "bigbuckbunny", "bikes", "box", "carphone_pristine", "cup", "tree", "vtest"]
pytestmark = pytest.mark.skipif(
    not FILMS.is_dir(), reason="real films are not there: SCALEUP_REAL names no folder that tools/real.py has filled"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each film."""
    folder = tmp_path_factory.mktemp("classes")
    for film in FILMS.iterdir():
        (folder / film.stem).mkdir()
        shutil.copy(film, folder / film.stem)
    return folder


@pytest.mark.parametrize("options", [(), ("--short", 112)], ids=["copied", "reencoded"])
def test_films_are_packed_as_they_are(folder: Path, tmp_path: Path, options: tuple) -> None:
    done = tool("make_shards", folder, "--out", tmp_path / "out", *options, "--json")
    assert done.returncode == 0, done.stderr
    (written,) = json.loads(done.stdout)["shards"].values()
    assert written["samples"] == 8 and not written["failures"]
    assert Shards.open(tmp_path / "out").classes == {"label": NAMES}
    done = tool("check_shards", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr


def test_films_are_predicted_as_they_are(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    model = fresh(tiny().model, {"film": NAMES}, 0).save_pretrained(tmp_path / "model")
    done = tool("predict", model, *FILMS.iterdir(), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {Path(entry["source"]).stem for entry in result["files"]} == set(NAMES) and not result["failures"]


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_is_drawn_on_a_film(tiny: Callable[..., Recipe], tmp_path: Path, name: str) -> None:
    model = fresh(tiny().model, {"film": NAMES}, 0).save_pretrained(tmp_path / "model")
    (film,) = FILMS.glob(f"{name}.*")
    done = tool("predict", model, film, "--overlay", tmp_path / "seen.mp4")
    assert done.returncode == 0 and (tmp_path / "seen.mp4").stat().st_size > 1000, done.stderr
