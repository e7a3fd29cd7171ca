"""Judging claims, the page, and what the tables name."""

import json
import math
import re
from dataclasses import make_dataclass, replace

import pytest

import reproduce
from reproduce import DOCS, tasks, work
from reproduce.desk import Desk, start_models
from reproduce.page import claims, document
from reproduce.runs import arm_name, identity
from reproduce.tables import RANDOM, STAGES, TABLES, TRANSPLANTS, Claim, Row, Source, Table
from reproduce.tasks import Remaining, Speed
from reproduce.verdict import judge
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Backbone, Model, Recipe, Train, Tube


def seeds(*values):
    return {str(seed): value for seed, value in enumerate(values)}


@pytest.mark.parametrize(
    "better, worse, word",
    [
        ((0.80, 0.82, 0.84), (0.70, 0.71, 0.75), "holds"),
        ((0.70, 0.71, 0.75), (0.80, 0.82, 0.84), "does not hold"),
        ((0.50, 0.70, 0.90), (0.40, 0.60, 0.80), "holds"),  # seeds differ more than rows, and all agree
        ((0.50, 0.70, 0.90), (0.49, 0.62, 0.91), "within noise"),
        ((0.80, 0.80, 0.83), (0.80, 0.80, 0.80), "within noise"),  # of three, one alone says so
        ((0.80,), (0.70,), "one seed"),
        ((), (0.70,), "not measured"),
    ],
)
def test_a_claim_is_judged_by_what_differs_from_seed_to_seed(better, worse, word):
    assert judge(seeds(*better), seeds(*worse)).word == word


def test_the_interval_is_student_s():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), and t is 4.303 with two degrees of freedom."""
    verdict = judge(seeds(1, 2, 3), seeds(0, 0, 0))
    assert verdict.difference == 2
    assert math.isclose(verdict.interval, 4.303 / 3**0.5)


def test_seeds_that_one_row_lacks_do_not_count():
    assert judge({"0": 0.5, "2": 0.9}, {"2": 0.8, "7": 0.1}).difference == pytest.approx(0.1)


TRIED = {"0.0006": 0.5, "0.002": 0.7, "0.006": 0.6}
TABLE = Table(
    "Table 0: made up",
    (Row("good", 84.5, Source("table7a")), Row("bad", 77.0, Source("table7a"))),
    (Claim("good", "bad"), Claim("bad", "good"), Claim("good", "bad", head="shape")),
    remarks={"good > bad": "This sentence explains.", "bad > good": "And this one.", "good > bad by shape": "Alike."},
)


def test_the_page_says_what_holds_what_does_not_and_what_is_missing(tmp_path):
    def row(paper, *values):
        found = {str(seed): {"place_motion": value, "shape": 0.5} for seed, value in enumerate(values)}
        return {"paper": paper, "lr": 2e-3, "validation": TRIED, "steps": 9, "batch": 32, "seeds": found}

    rows = {"good": row(84.5, 0.80, 0.82, 0.84), "bad": row(77.0, 0.70, 0.71, 0.75)}
    rows["good" + RANDOM] = row(None, 0.1, 0.2, 0.3) | {"lr": 6e-3}
    result = {"seeds": [0, 1, 2], "samples": 4000, "chance": {"place_motion": 1 / 24, "shape": 0.125}, "rows": rows}
    (tmp_path / "there.json").write_text(json.dumps(result))
    page = document({"there": TABLE, "missing": TABLE}, tmp_path)
    assert "| good | 84.5 | 82.0 (80.0 to 84.0) | 50.0 (50.0 to 50.0) | 2e-03 | 9 |" in page
    assert "| good (random tubes) | - | 20.0 (10.0 to 30.0) | 50.0 (50.0 to 50.0) | 6e-03* | 9 |" in page
    assert "- good > bad: **holds** (+10.0 ± 2.5).\n" in page  # and no sentence where nothing is to be explained
    assert "- bad > good: **does not hold** (-10.0 ± 2.5). And this one.\n" in page
    assert "- good > bad by shape: **within noise** (+0.0 ± 0.0). Alike.\n" in page
    assert (
        "| `there` | Table 0: made up | 3 | 2 | 1 | 1 |\n| `missing` | Table 0: made up | not run | - | - | - |" in page
    )
    assert "4,000 training videos, batches of 32." in page
    assert "- good > good (random tubes) (not the paper's): **holds**" in page
    assert "place_motion 4.2%" in page
    assert page.count("Not run yet") == 1 and "`python tools/reproduce.py missing`" in page


def test_a_row_of_another_table_is_shown_and_neither_trained_nor_judged(tmp_path):
    def result(*names):
        row = {"paper": None, "lr": 2e-3, "validation": TRIED, "steps": 9, "seeds": {"0": {"place_motion": 0.25}}}
        return {"seeds": [0], "samples": 9, "chance": {"place_motion": 0.1}, "rows": dict.fromkeys(names, row)}

    shown = Row("good", shown_from="there")
    here = Table("Table 1: made up", (Row("own", source=Source("table7a")), shown), ())
    assert [row.name for row, _ in here.trained()] == ["own"] and not here.untrained()
    (tmp_path / "here.json").write_text(json.dumps(result("own")))
    assert "†" not in document({"here": here}, tmp_path)
    (tmp_path / "there.json").write_text(json.dumps(result("good", "good" + RANDOM, "bad")))
    page = document({"here": here}, tmp_path)
    assert "| own | - | 25.0 | 2e-03 | 9 |\n| good † | - | 25.0 | 2e-03 | 9 |\n| good (random tubes) † |" in page
    assert "bad" not in page and "good >" not in page


def test_what_is_published_is_the_page_of_the_results_and_says_why_a_claim_is_not_seen():
    text = (DOCS / "reproduction.md").read_text()
    assert text == document(TABLES, DOCS / "reproduction")
    assert re.findall(r"^- .*\*\*holds\*\*.*$", text, re.M)
    assert re.findall(r"^- .*\*\*(?:within noise|does not hold)\*\*[^)]*\)\.$", text, re.M) == []  # and no sentence


def test_every_row_has_its_recipe_and_every_claim_its_rows(tmp_path):
    desk = Desk(tmp_path)
    for name, table in TABLES.items():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        assert {row.of for row in table.rows} - {""} <= set(names)
        others = [row for row in table.rows if row.shown_from]
        assert all(row.name in {each.name for each in TABLES[row.shown_from].rows} for row in others)
        assert {row for claim in table.claims for row in (claim.better, claim.worse)} <= set(names), name
        every = claims(table, [*names, *(name + RANDOM for name in names)])
        assert table.remarks.keys() <= set(map(str, every)), name
    sources = {(name, source) for name, table in TABLES.items() for _, source in table.trained()}
    for name, source in sources:
        content = desk.content(source)
        assert not source.arm or source.arm in content["arms"], f"{name}: {source}"
        model = content["model"]
        beginning = model.get("load") or (model.get("backbone") or {}).get("weights")
        assert beginning is None or beginning in start_models(content).values(), f"{name} begins from {beginning}"
    for source in STAGES.values():
        desk.content(source)
    for parents in TRANSPLANTS.values():
        assert set(parents) <= STAGES.keys()


def test_runs_and_arms_are_known_by_their_settings():
    tubes = {"cube": Tube([8, 8, 8], [8, 8, 8])}
    recipe = Recipe(model=Model(tubes=tubes))
    assert identity(recipe) == identity(Recipe("elsewhere", model=Model(tubes=tubes), arm=Arm(lr=0.1)))
    others = [replace(tubes["cube"], **change) for change in ({"fold": [2, 1, 1]}, {"stride": [4, 8, 8]})]
    names = {identity(Recipe(model=Model(tubes={"cube": other}))) for other in others}
    assert len(names | {identity(recipe), identity(replace(recipe, seed=1))}) == 4
    assert arm_name(Arm(lr=0.1)) == arm_name(Arm(lr=0.1)) != arm_name(Arm(lr=0.2))


def test_a_new_setting_leaves_the_names_of_old_runs_as_they_are():
    later = make_dataclass("Arm", [("new", int, 0)], bases=(Arm,))
    assert arm_name(later(lr=0.1)) == arm_name(Arm(lr=0.1)) != arm_name(later(lr=0.1, new=1))


def test_tables_are_chosen_by_name():
    assert reproduce.chosen(["table9", "table6", "table9"]) == ["table9", "table6"]
    assert reproduce.chosen(["table9", "all"]) == list(TABLES)
    with pytest.raises(UserError, match="no table 'tabel9'.*nearest: 'table9'"):
        reproduce.chosen(["tabel9"])


def test_published_rates_are_those_that_the_page_was_made_with():
    for name, rows in reproduce.published(list(TABLES)).items():
        results = json.loads((DOCS / f"reproduction/{name}.json").read_text())["rows"]
        assert rows.keys() == {title for title, row in results.items() if row["lr"]}
        for title, rates in rows.items():
            tried = dict(zip(rates, results[title]["validation"], strict=True))
            assert float(tried[max(rates, key=rates.get)]) == pytest.approx(results[title]["lr"], rel=1e-3)


def test_each_row_is_tuned_with_the_first_seed_and_tested_at_its_best(tmp_path, monkeypatch):
    """What trains and evaluates is made up: accuracy falls with the distance of the learning rate from the best."""
    best, asked, tested = {"good": 3e-3, "bad": 0.3e-3}, [], []
    monkeypatch.setattr(work, "FACTORS", (0.3, 1.0, 3.0))
    monkeypatch.setattr(Desk, "data", lambda self, seed: tmp_path / f"seed{seed}")
    monkeypatch.setattr(Desk, "is_transplant", lambda self, source: False)
    monkeypatch.setattr(Desk, "stages", lambda self, source: [])
    monkeypatch.setattr(Desk, "has", lambda self, source, seed, tubes: True)
    monkeypatch.setattr(Desk, "steps", lambda self, source: 6 if "longer" in source.choices else 2)
    recipes = {name: Recipe(model=Model(backbone=Backbone(name)), train=Train(steps=2)) for name in best}
    monkeypatch.setattr(
        Desk, "read", lambda self, source, seed, tubes: (replace(recipes[source.recipe], seed=seed), Arm(lr=1e-3))
    )
    monkeypatch.setattr(
        tasks, "rehearse", lambda desk, sources: {s: Speed(s.recipe, "arm", 1.0, 10.0) for s in sources}
    )
    monkeypatch.setattr(tasks, "find_arm", lambda recipe, arm, root: tmp_path if key(recipe, arm) in asked else None)

    def key(recipe, arm):
        return recipe.seed, recipe.model.backbone.name, f"{arm.lr:g}"

    def trained(recipe, arms, root):
        asked.extend(key(recipe, arm) for arm in arms.values())
        paths = {name: tmp_path / f"{recipe.model.backbone.name}_{arm.lr:g}" for name, arm in arms.items()}
        for path in paths.values():
            path.mkdir(exist_ok=True)
            (path / "report.json").write_text('{"training": {"alpha": null}}')
            (path / "config.json").write_text('{"heads": {"place_motion": []}}')
        return {
            name: None if arms[name].lr > 2.9e-3 and path.name.startswith("bad") else path
            for name, path in paths.items()
        }

    def scores(models, shards, views="1x1", strides=None):
        tested.extend((shards.parent.name, shards.name, path.name) for path in models.values())
        rates = {name: path.name.split("_") for name, path in models.items()}
        return {name: {"place_motion": 0.5 - abs(float(lr) - best[row])} for name, (row, lr) in rates.items()}

    monkeypatch.setattr(work, "trained", trained)
    monkeypatch.setattr(work, "scores", scores)
    monkeypatch.setattr(work.Work, "_chance", lambda self, table: {"place_motion": 1 / 24})
    table = Table("Table 0", tuple(Row(name, 1.0, Source(name)) for name in best), ())
    alike, longer = (
        Table("Table 1", tuple(Row(name, 1.0, Source(name, (how,))) for name in best), ()) for how in ("same", "longer")
    )
    tables = {"table": table, "alike": alike, "longer": longer}  # the first two share what they train
    running = work.Work(Desk(tmp_path), [4, 5], tables, {})
    assert running.plan.total == Remaining(4 + 4, arm_steps=(2 + 6) * 8, seconds=(2 + 6) * (4 * 1 + 8 * 10))
    found = running.table("table")
    grid = [(4, name, f"{lr:g}") for name in best for lr in (0.3e-3, 1e-3, 3e-3)]
    assert sorted(asked) == sorted(grid + [(5, name, f"{lr:g}") for name, lr in best.items()])
    assert sorted(each for each in tested if each[1] == "videos-test") == [
        (f"seed{seed}", "videos-test", f"{name}_{best[name]:g}") for seed in (4, 5) for name in ("bad", "good")
    ]
    assert {name: row["lr"] for name, row in found["rows"].items()} == pytest.approx(best)
    assert found["rows"]["bad"]["validation"]["0.003"] == 0  # it diverged
    assert running.plan.remaining() == Remaining(0, 0, 0)
    assert found["rows"]["good"]["seeds"] == {"4": {"place_motion": 0.5}, "5": {"place_motion": 0.5}}
    asked.clear()
    known = {"table": {"good": {0.3: 0.1, 1.0: 0.9, 3.0: 0.2}}}  # and nothing of the other row
    again = work.Work(Desk(tmp_path), [4, 5], {"table": table}, known)
    assert again.plan.total.arm_steps == 2 * ((1 + 3) + 2)
    found = again.table("table")
    assert sorted(each for each in asked if each[1] == "good") == [(4, "good", "0.001"), (5, "good", "0.001")]
    assert len([each for each in asked if each[1] == "bad"]) == 4
    assert found["rows"]["good"]["lr"] == 1e-3 and found["rows"]["good"]["validation"]["0.003"] == 0.2
