"""The page on runs: what it holds, and that a browser shows it."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from support.runs import copied
from support.tools import tool

from scaleup.cli import report
from scaleup.common.errors import UserError
from scaleup.config import recipe as recipes
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Arm, Recipe
from scaleup.evaluation.accuracy import Coverage, evaluate
from scaleup.evaluation.depth_profile import DepthAccuracy, DepthCurve, DepthProfile
from scaleup.model.build import PreparedTrunk, load_run
from scaleup.outputs import class_report, report_page, run_records, svg_plots
from scaleup.outputs.class_report import confused, confusions, recall
from scaleup.outputs.html import document
from scaleup.sweeps import costs
from scaleup.sweeps.parts import sweep
from scaleup.training.run import train

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def made(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete sweep with validation after every second step."""
    out = tmp_path_factory.mktemp("report") / "out"
    shards = tiny_path.parent / "shapes" / "videos-train"
    recipe = recipes.load(tiny_path, [f"data.valid.shards={shards}", "train.valid_every=2", f"out={out}"])
    train(recipe, sweep_arms(recipe))
    return out


@pytest.fixture
def swept(made: Path, tmp_path: Path) -> Path:
    """That sweep, where a test may change it."""
    return copied(made, tmp_path / "out")


def shards_of(run: Path) -> str:
    return run_records.read(run).recipe.data.train["videos"].shards


def test_the_page_holds_what_the_run_wrote_down(swept: Path, tmp_path: Path) -> None:
    done = tool("report", swept, "--out", tmp_path / "page.html", "--shards", shards_of(swept), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("confusion: 12/12") == 1  # the page is made once
    assert json.loads(done.stdout)["runs"] == {"out": "complete, 4 steps"}
    page = (tmp_path / "page.html").read_text()
    result = json.loads((swept / "result.json").read_text())
    for name, arm in result["arms"].items():
        row = re.search(rf"<tr><td><span[^>]*></span>{name}</td>(.*?)</tr>", page)
        assert row is not None
        cells = re.findall(r"<td>(.*?)</td>", row[1])
        assert cells[0] == str(arm["frozen_depth"]) and cells[1] == f"{arm['trained_parameters']:,}"
        assert cells[3] == f"{100 * arm['valid_accuracy']:.2f}" and cells[-1].startswith(arm["ended"])
    for said in ("loss, a running mean", "motion: top-1 against frozen depth", "motion: top-1 against cost"):
        assert f"<figcaption>{said}" in page
    assert "<figcaption>alpha of the gate" in page and "of validation, one view" not in page
    assert "Scores (top-1) of out: validation, one view, at its best." in page
    for title in ("Result", "Curves", "Where tubes look", "Kernels of the tubes", "Classes", "Recipe", "Environment"):
        assert re.search(rf"<h2>[^<]*{title}", page), title
    assert "kernel of patches" in page and "kernel of long" in page
    assert "weight_decay: 0.1" in page and "torch: 2" in page and "Where out was trained" in page
    assert not re.search(r'(src|href)="(?!data:)[^#"]', page.replace('href="#', "")), "something is fetched"
    assert len(list(tmp_path.glob("*.html"))) == 1 and not list(tmp_path.glob(".*"))


MEASURED = """<script>
const boxes = query => [...document.querySelectorAll(query)].map(each => each.getBoundingClientRect());
document.title = JSON.stringify({
  plots: boxes("svg").map(box => [box.width, box.height]),
  letters: Math.min(...boxes("svg text").filter(box => box.height).map(box => Math.min(box.width, box.height))),
  page: document.documentElement.scrollWidth,
  window: window.innerWidth,
});
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_every_plot_and_complains_of_nothing(swept: Path, tmp_path: Path, width: int) -> None:
    """500 pixels are the narrowest window that Chromium opens."""
    report_page.write([swept], tmp_path / "page.html", shards_of(swept))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", f"--window-size={width},844"]
    shown = tmp_path / "shown.html"
    shown.write_text((tmp_path / "page.html").read_text().replace("</body>", MEASURED))
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", shown.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    found = json.loads(html.unescape(title[1]))
    assert len(found["plots"]) == (tmp_path / "page.html").read_text().count("<svg") >= 8
    assert all(100 < w <= found["window"] and h > 60 for w, h in found["plots"])
    assert found["page"] <= found["window"] == width, "a phone would scroll sideways"
    assert found["letters"] > 7, "too small to read"


def test_an_unfinished_run_is_shown_as_far_as_it_is(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny("train.steps=40", "train.save_every=2")
    train(recipe, sweep_arms(recipe), stop_after=0)
    with (tmp_path / "out" / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 1, "ar')  # a line that is being written
    result = report_page.write([tmp_path / "out"], tmp_path / "page.html", refresh=30)
    assert result.runs == {"out": "unfinished: 1 of 40 steps so far"}
    page = (tmp_path / "page.html").read_text()
    assert '<meta http-equiv="refresh" content="30">' in page and page.count("step 1 of 40") == 3
    assert "No arm was validated" in page and "Not drawn: " in page and "has no trained arms yet" in page


def test_confusions_add_up_to_what_evaluation_says(swept: Path) -> None:
    models, shards = load_run(swept), shards_of(swept)
    counts, classes, seen = confusions(models, shards, batch=5)
    expected = evaluate(models, shards, "1x1")
    for name, heads in counts.items():
        for head, matrix in heads.items():
            assert matrix.sum() == seen.samples == 12
            assert matrix.trace() / 12 == pytest.approx(expected[name].heads[head].top1)
        assert classes[name] == expected[name].classes


def test_words_for_confusions() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 4], [0, 0, 0]])
    assert recall(counts).tolist() == [75, 0, 0]
    assert confused(counts, ["a", "b", "c"]) == ["b taken for c (4)", "a taken for b (1)"]


def test_a_running_mean_is_over_a_twentieth_of_the_steps() -> None:
    values = np.random.default_rng(0).random(100).tolist()
    slow = [np.mean(values[max(0, step - 4) : step + 1]) for step in range(100)]
    assert svg_plots._smoothed(values) == pytest.approx(slow)
    drawn = svg_plots.lines("loss <1>", "loss", {"a": ([0, 1], [1.0, 2.0]), "empty": ([], [])})
    assert drawn is not None and ElementTree.fromstring(drawn).get("aria-label") == "loss <1>"
    assert svg_plots.lines("nothing", "loss", {"empty": ([], [])}) is None


def test_what_is_no_run_is_named_with_those_near(swept: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the directory of a run, it has no recipe\.yaml; below it: .*/out"):
        report_page.write([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.fixture(scope="module")
def made_in_parts(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete sweep of four arms, two of them from a grid, in two parts."""

    def waves(recipe: Recipe, arms: dict[str, Arm], available: int, ranks: int = 1) -> list[dict[str, Arm]]:
        pairs = list(arms.items())
        return [dict(pairs[:2]), dict(pairs[2:])] if len(pairs) > 2 else [arms]

    out = tmp_path_factory.mktemp("parts") / "out"
    recipe = recipes.load(tiny_path, ["grid.frozen_depth=[2]", "grid.lr=[1e-3]", "train.steps=2", f"out={out}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "waves", waves)
        sweep(recipe, sweep_arms(recipe))
    return out


@pytest.fixture
def parted(made_in_parts: Path, tmp_path: Path) -> Path:
    """That sweep, where a test may change it."""
    return copied(made_in_parts, tmp_path / "out")


def test_a_sweep_in_parts_shows_the_curves_of_all_of_them(parted: Path, tmp_path: Path) -> None:
    found = run_records.read(parted)
    assert found.state == "complete, 2 steps" and list(found.arms) == ["full", "last", "gated", "depth2_lr1e-3"]
    assert all(found.series(arm, "loss")[0] == [0, 1] for arm in found.arms)
    report_page.write([parted], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    (loss,) = re.findall(r'<svg role="img" aria-label="out loss".*?</svg>', page, re.DOTALL)
    assert all(f">{arm}</text>" in loss for arm in found.arms)


def test_a_sweep_in_parts_that_is_unfinished_says_what_there_is(parted: Path, tmp_path: Path) -> None:
    (parted / "result.json").unlink()
    second = parted / "parts" / "02"
    (second / "result.json").unlink()
    lines = (second / "metrics.jsonl").read_text().splitlines()
    (second / "metrics.jsonl").write_text(lines[0] + "\n")
    shutil.rmtree(parted / "gated")
    result = report_page.write([parted], tmp_path / "page.html")
    assert result.runs == {"out": "unfinished: 1 of 2 parts are complete, 6 of 8 steps of all arms so far"}
    page = (tmp_path / "page.html").read_text()
    rows = re.findall(r"<tr><td><span[^>]*></span>(.*?)</td><td>(.*?)</td>.*?<td>([^<]*)</td></tr>", page)
    assert rows == [
        ("full", "0", "complete"),
        ("last", "3", "complete"),
        ("gated", "1", "step 1 of 2"),
        ("depth2_lr1e-3", "2", "step 1 of 2"),
    ]
    assert "How many tokens see each pixel" in page  # the arms that are complete are there
    (second / "metrics.jsonl").unlink()
    assert run_records.read(parted).stands("gated") == "not begun"


@pytest.fixture
def profile(swept: Path, tmp_path: Path) -> Path:
    """A depth profile of the model that a run says it began from."""
    rows = [DepthAccuracy(0, 0.3, 0.2, 0.01, 1.0), DepthAccuracy(3, 0.9, 0.7, 0.0, 1.0)]
    about = {"sha256": "0" * 64, "depth": 3, "tubes": {"long": "as it was"}}
    train, test = (Coverage(f"data/{name}", 12, [], "f" * 64, "1x1") for name in ("train", "val"))
    curves = {"motion": DepthCurve(6, 1 / 6, rows, 3)}
    trunk = PreparedTrunk("bfloat16", "device", {}, {3: 0.01})
    found = DepthProfile(curves, train, test, 12, "mean", about, trunk, 1.0)
    (tmp_path / "began" / "probe").mkdir(parents=True)
    (tmp_path / "began" / "config.json").write_text(json.dumps({"tubes": about["tubes"]}))
    (tmp_path / "began" / "probe" / "probe.json").write_text(json.dumps(asdict(found)))
    recipe = (swept / "recipe.yaml").read_text()
    (swept / "recipe.yaml").write_text(
        re.sub(r"^model:\n(  .*\n)*", f"model: {{load: {tmp_path / 'began'}}}\n", recipe, flags=re.M)
    )
    return tmp_path / "began" / "probe"


def test_a_depth_profile_stands_beside_the_sweep(swept: Path, profile: Path, tmp_path: Path) -> None:
    report_page.write([swept], tmp_path / "page.html")  # it is found beside the model
    page = (tmp_path / "page.html").read_text()
    assert page.count(">linear probe</text>") == 1  # that of motion alone
    assert "12 samples of val, list ffffffffffff" in page
    assert "motion: top-1 against frozen depth, beside a linear probe" in page
    report_page.write([swept], tmp_path / "given.html", probe=profile / "probe.json")
    assert (tmp_path / "given.html").read_text() == page
    (profile.parent / "config.json").write_text(json.dumps({"tubes": {"long": "otherwise"}}))
    with pytest.raises(UserError, match="is of another model than .*/began', which .*/out' began from: tubes differ"):
        report_page.write([swept], tmp_path / "page.html", probe=profile)
    with pytest.raises(UserError, match="is no depth profile of tools/probe.py"):
        report_page.write([swept], tmp_path / "page.html", probe=swept / "result.json")


def test_an_evaluation_of_one_arm_does_not_hide_the_validation_of_all(swept: Path) -> None:
    on = {"shards": "test", "views": "4x3", "list_sha256": "f" * 64}
    for count, arm in enumerate(("full", "last", "gated"), 1):
        path = swept / arm / "report.json"
        entry = {"on": on, "heads": {"motion": {"top1": 0.5}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"evaluations": [entry]}))
        scores = run_records.read(swept).scores
        assert scores.words.startswith("test, 4x3 views" if count == 3 else "validation") and len(scores.arms) == 3
    assert scores.arms["full"] == {"motion": 0.5}


def test_a_head_that_stayed_at_chance_is_named_beside_its_arm() -> None:
    results: Any = {
        "a": SimpleNamespace(ended="early", at_chance={"motion": {}}, gaps={}),
        "b": SimpleNamespace(ended="complete", at_chance={}, gaps={"shape": SimpleNamespace(train=0.9, valid=0.5)}),
    }
    facts = run_records.Facts("run", Path("run"), Recipe(arms={"a": {}, "b": {}}), [], [], results, None)
    assert [facts.stands(arm) for arm in "ab"] == ["early, motion at chance", "complete, shape 0.40 better in training"]


def test_classes_that_change_most_come_first_and_the_rest_unfolds() -> None:
    names, before, after = (
        [f"c{number:02d}" for number in range(25)],
        np.eye(25, dtype=int) * 4,
        np.eye(25, dtype=int) * 4,
    )
    after[7] = np.roll(after[7], 1)
    blocks = list(class_report._of_head("motion", {"before": before, "after": after}, names))
    page = document("classes", {}, {"Classes": blocks})
    table, everything = page.split("<details>")
    assert table.index("<td>c07</td>") < table.index("<td>c00</td>") and "-100.0" in table
    assert table.count("<tr>") == 21 and everything.count("<tr>") == 26 and "all 25 classes" in everything


def test_shards_are_passed_over_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    states, shards = ["unfinished", "complete", "complete"], []

    def write(runs: Any, out: str, shards_of: str | None = None, **_: Any) -> report_page.Page:
        shards.append(shards_of)
        return report_page.Page(out, {"run": states.pop(0)}, 0)

    monkeypatch.setattr(report_page, "write", write)
    monkeypatch.setattr("time.sleep", lambda _: None)
    report.run(report.arguments().parse_args(["run", "--out", "page.html", "--shards", "clips", "--watch", "30"]))
    assert shards == [None, None, "clips"] and not states
