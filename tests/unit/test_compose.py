from pathlib import Path

import pytest

from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.compose import combinations
from scaleup.config.schema import Recipe

BASE = """
model:
  input: {frames: 32, size: [224, 224]}
  tubes:
    cube: {kernel: [8, 8, 8], stride: [16, 32, 32]}
    long: {kernel: [16, 4, 4], stride: [6, 32, 32]}
arms: {head: {frozen_depth: 2}, all: {}}
train: {steps: 300, warmup: 10}
arm: {lr: 1e-3}
variants:
  scale:
    paper:
    desk: {model: {input: {size: [32, 32]}}, train: {steps: 60}, arm: {lr: 2e-3}}
"""
ROWS = """
base: base.yaml
train: {steps: 200}
variants:
  row:
    two: {}
    one:
      model: {tubes: {long: null}}
      arms: {all: null}
      variants:
        scale:
          paper: {model: {tubes: {cube: {fold: [2, 1, 1]}}}}
          desk: {model: {tubes: {cube: {stride: [8, 8, 8]}}}, arm: {lr: 3e-3}}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "rows.yaml").write_text(ROWS)
    return tmp_path / "rows.yaml"


def said(read: Recipe) -> tuple:
    cube = read.model.tubes["cube"]
    return read.train.steps, read.arm.lr, read.model.input.size[0], list(read.model.tubes), cube.stride[0], cube.fold[0]


def test_later_wins_and_a_choice_holds_wherever_its_group_stands(rows: Path) -> None:
    assert said(recipe.load(rows)) == (200, 1e-3, 224, ["cube", "long"], 16, 1)
    assert said(recipe.load(rows, ["row=one"])) == (200, 1e-3, 224, ["cube"], 16, 2)
    assert said(recipe.load(rows, ["scale=desk", "arm.lr=5"])) == (60, 5, 32, ["cube", "long"], 16, 1)
    assert said(recipe.load(rows, ["scale=desk", "row=one"])) == (60, 3e-3, 32, ["cube"], 8, 1)
    assert said(recipe.load(rows.with_name("base.yaml"))) == (300, 1e-3, 224, ["cube", "long"], 16, 1)


def test_an_entry_that_is_null_is_left_out(rows: Path) -> None:
    assert list(recipe.load(rows, ["row=one"]).arms) == ["head"]
    assert list(recipe.load(rows, ["model.tubes.cube=null"]).model.tubes) == ["long"]


def test_all_choices_are_listed_once_the_default_first(rows: Path) -> None:
    pairs = [(choice["scale"], choice["row"]) for choice in combinations(rows)]
    assert pairs == [("paper", "two"), ("paper", "one"), ("desk", "two"), ("desk", "one")]
    (rows.with_name("nested.yaml")).write_text("variants: {scale: {paper: {variants: {size: {b: , l: }}}, desk: }}")
    assert combinations(rows.with_name("nested.yaml")) == [
        {"scale": "paper", "size": "b"},
        {"scale": "paper", "size": "l"},
        {"scale": "desk"},
    ]
    rows.with_name("plain.yaml").write_text("seed: 1")
    assert combinations(rows.with_name("plain.yaml")) == [{}]


def test_names_that_yaml_reads_as_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "blocks.yaml"
    path.write_text("variants: {blocks: {0: , 4: {seed: 4, variants: {8: {1: {}, 2: {seed: 8}}}}}}")
    assert [recipe.load(path, changes).seed for changes in ([], ["blocks=4"], ["blocks=4", "8=2"])] == [0, 4, 8]
    assert combinations(path) == [{"blocks": "0"}, {"blocks": "4", "8": "1"}, {"blocks": "4", "8": "2"}]
    with pytest.raises(UserError, match="blocks=5: '.*blocks.yaml' has 0, 4"):
        recipe.load(path, ["blocks=5"])


@pytest.mark.parametrize(
    ("content", "changes", "sentence"),
    [
        (ROWS, ["scale=dsk"], "^scale=dsk: '.*rows.yaml' has paper, desk; nearest: 'desk'"),
        (ROWS, ["scal=desk"], "scal: unknown key"),
        ("base: rows.yaml", [], "rows.yaml' is based on itself"),
        ("base: bas.yaml", [], "no recipe at '.*bas.yaml'; nearest: 'base.yaml'.*; '.*rows.yaml' is based on it"),
        ("base: [1]", [], "no recipe at"),
        ("base: '${oc.env:NOT_SET_HERE}'", [], "rows.yaml' cannot be read: .*'NOT_SET_HERE' not found"),
        ("variants: {row: '${oc.env:NOT_SET_HERE}'}", [], "variants.*is not a mapping such as"),
        ("seed: '${oc.env:NOT_SET_HERE}'", [], "rows.yaml' cannot be read: .*'NOT_SET_HERE' not found"),
        ("base: base.yaml\nmodel: [1]", [], "rows.yaml' cannot be read: Cannot merge incompatible"),
        (
            "variants: {row: {a: {train: [1]}}}\ntrain: {steps: 3}",
            [],
            "rows.yaml' cannot be read: Cannot merge incompatible",
        ),
        ("variants: {seed: {one: {}}}", [], "has variants named 'seed', which is a setting of every recipe"),
        ("variants: {row: [a]}", [], "variants.*is not a mapping such as"),
        ("variants: 3", [], "variants.*is not a mapping such as"),
        ("variants: {row: {a: 3}}", [], "variants.*is not a mapping such as"),
        ("variants: {row: {}}", [], "variants.*is not a mapping such as"),
    ],
)
def test_mistakes_are_said(rows: Path, content: str, changes: list[str], sentence: str) -> None:
    rows.write_text(content)
    with pytest.raises(UserError, match=sentence):
        recipe.load(rows, changes)
