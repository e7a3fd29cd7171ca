"""The page on runs: what it holds, and that a browser shows it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from scaleup import report
from scaleup.checkpoint import load_run
from scaleup.errors import UserError
from scaleup.evaluate import evaluate
from scaleup.recipe import Recipe, sweep_arms
from scaleup.report import facts, plots
from scaleup.report.confusion import confused, confusions, recall
from scaleup.training.run import run

TOOL = Path(__file__).parents[2] / "tools" / "report.py"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def swept(tiny: Callable[..., Recipe], tmp_path: Path) -> Path:
    """A complete sweep with validation after every second step."""
    shards = tiny().data.train["videos"].shards
    recipe = tiny(f"data.valid.shards={shards}", "train.valid_every=2")
    run(recipe, sweep_arms(recipe))
    return tmp_path / "out"


def shards_of(run: Path) -> str:
    return facts.read(run).recipe["data"]["train"]["videos"]["shards"]


def test_the_page_holds_what_the_run_wrote_down(swept: Path, tmp_path: Path) -> None:
    command = [sys.executable, TOOL, swept, "--out", tmp_path / "page.html", "--shards", shards_of(swept), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"] == {"out": "complete, 4 steps"}
    page = (tmp_path / "page.html").read_text()
    result = json.loads((swept / "result.json").read_text())
    for name, arm in result["arms"].items():
        row = re.search(rf"<tr><td>{name}</td>(.*?)</tr>", page)
        assert row is not None
        cells = re.findall(r"<td>(.*?)</td>", row[1])
        assert cells[0] == str(arm["frozen_depth"]) and cells[1] == f"{arm['trained_parameters']:,}"
        assert cells[3] == f"{100 * arm['valid_accuracy']:.2f}" and cells[6] == arm["ended"]
    for said in ("loss, a running mean", "accuracy against frozen depth", "accuracy against cost", "alpha of the gate"):
        assert f"<figcaption>{said}" in page
    for title in ("where tubes look", "kernels", "confusion", "recipe", "Environment"):
        assert re.search(rf"<h2>[^<]*{title}", page), title
    assert "weight_decay: 0.1" in page and "torch 2" in page
    assert not re.search(r'(src|href)="(?!data:)[^#"]', page.replace('href="#', "")), "something is fetched"
    assert len(list(tmp_path.glob("*.html"))) == 1 and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_shows_every_plot_and_complains_of_nothing(swept: Path, tmp_path: Path) -> None:
    report.write([swept], tmp_path / "page.html", shards_of(swept))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--window-size=390,844"]
    shown = tmp_path / "shown.html"
    script = "<script>document.title = [...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect())"
    script += (
        ".map(r => [r.width, r.height].map(Math.round)).join(';') + '|' + document.body.scrollWidth</script></body>"
    )
    shown.write_text((tmp_path / "page.html").read_text().replace("</body>", script))
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", shown.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    sizes, width = title[1].split("|")
    plots = [tuple(map(int, each.split(","))) for each in sizes.split(";")]
    assert len(plots) == (tmp_path / "page.html").read_text().count("<svg") >= 8
    assert all(100 < w <= int(width) and h > 60 for w, h in plots)
    assert int(width) <= 500  # a phone need not scroll sideways


def test_an_unfinished_run_is_shown_as_far_as_it_is(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny("train.steps=40", "train.save_every=2")
    run(recipe, sweep_arms(recipe), stop_after=0)
    with (tmp_path / "out" / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 1, "ar')  # a line that is being written
    result = report.write([tmp_path / "out"], tmp_path / "page.html", refresh=30)
    assert result["runs"] == {"out": "unfinished: 1 of 40 steps so far"}
    page = (tmp_path / "page.html").read_text()
    assert '<meta http-equiv="refresh" content="30">' in page and "not yet" in page
    assert "No arm was validated" in page and "where tubes look" not in page


def test_confusions_add_up_to_what_evaluation_says(swept: Path) -> None:
    models, shards = load_run(swept), shards_of(swept)
    counts, seen = confusions(models, shards, batch=5)
    expected = evaluate(models, shards, "1x1")
    for name, heads in counts.items():
        for head, matrix in heads.items():
            assert matrix.sum() == seen["samples"] == 12
            assert matrix.trace() / 12 == pytest.approx(expected[name]["heads"][head]["top1"])


def test_words_for_confusions() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 4], [0, 0, 0]])
    assert recall(counts).tolist() == [75, 0, 0]
    assert confused(counts, ["a", "b", "c"]) == ["b taken for c (4)", "a taken for b (1)"]


def test_a_running_mean_is_over_a_twentieth_of_the_steps() -> None:
    values = np.random.default_rng(0).random(100).tolist()
    slow = [np.mean(values[max(0, step - 4) : step + 1]) for step in range(100)]
    assert plots._smoothed(values) == pytest.approx(slow)
    drawn = plots.lines("loss <1>", "loss", {"a": ([0, 1], [1.0, 2.0]), "empty": ([], [])})
    assert drawn is not None and ElementTree.fromstring(drawn).get("aria-label") == "loss <1>"
    assert plots.lines("nothing", "loss", {"empty": ([], [])}) is None


def test_what_is_no_run_is_named_with_those_near(swept: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the directory of a run, it has no recipe\.yaml; below it: .*/out"):
        report.write([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
