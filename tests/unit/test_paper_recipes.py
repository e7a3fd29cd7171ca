"""recipes/paper: every row of every table is there at both scales, and its header says what it costs."""

import copy
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import paper_plans as paper
import pytest
from support.marks import at_length

from scaleup.config import compose, recipe, schema
from scaleup.config.schema import Recipe
from scaleup.model.tubevit import TubeViT
from scaleup.sweeps import costs

SIDE = 0.05  # of hours that are beside the products of blocks: tokenizer, heads


@pytest.fixture(scope="module", params=["paper", "desk"])
def scale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scale, whose data are there in the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(request.param))
        paper.stub(request.param)
        yield request.param


@pytest.fixture(scope="module", autouse=True)
def files_read_once() -> Iterator[None]:
    """Recipes of the paper stand on a few files, which are put together once."""
    put_together = cache(compose._file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_file", lambda *file: copy.deepcopy(put_together(*file)))
        yield


@cache
def loaded(path: Path, scale: str, whole: bool = False) -> list[tuple[list[str], Recipe]]:
    """The rows of a file, by their choices; at desk scale every fourth unless ``whole``."""
    rows = paper.rows(path, scale)
    return [(choice, recipe.load(path, choice)) for choice in (rows if whole or scale == "paper" else rows[::4])]


def hours(read: Recipe, arm: schema.Arm, model: TubeViT) -> float:
    """GPU hours of a run by arithmetic: a block's forward pass takes 2 operations for each weight and token, and 4 for
    each pair of tokens and channel; its backward pass twice as much, and the pairs once more half of that, as fused
    attention computes them anew. Of the last block only keys and values are computed for all tokens, if the
    class token is pooled."""
    width, weights = model.tokenizer.embed_dim, sum(p.numel() for p in model.blocks[0].parameters())
    first = arm.pool == "own"
    frozen, whole = min(arm.frozen_depth, model.depth - first), max(model.depth - arm.frozen_depth - 1, 0)
    passes = first if arm.frozen_depth == model.depth else 3  # of the last block
    share, step = {name: data.weight for name, data in read.data.train.items()}, 0.0
    for name, weight in share.items():
        count = model.count_tokens(model.preprocess.frames if name == "videos" else 1)
        products, pairs, last = 2 * weights * count, 4 * count**2 * width, 4 * width**2 * count
        flops = frozen * (products + pairs) + whole * (3 * products + 3.5 * pairs) + passes * last
        step += flops * weight / sum(share.values())
    return read.train.steps * read.data.batch * step / (paper.GFLOPS * 1e9) / 3600


@pytest.mark.parametrize("whole", [False, *at_length(True)])
@pytest.mark.parametrize("path", paper.FILES, ids=lambda path: path.stem)
def test_every_row_loads_as_a_model(path: Path, scale: str, whole: bool) -> None:
    """Every fourth at desk scale, where their headers claim nothing of them."""
    rows, lines = loaded(path, scale, whole), paper.said(path)
    outs = [read.out for _, read in rows]
    assert all(out.startswith("runs/paper/") for out in outs)
    for choice, read in rows:
        arms, model = paper.arms(read), paper.outline(read)
        if scale == "paper":
            for name, arm in arms.items():
                line = lines.pop(paper.label(choice, name))
                frames = model.preprocess.frames if "videos" in read.data.train else 1
                assert line.tokens == model.count_tokens(frames), choice
                assert line.hours == pytest.approx(hours(read, arm, model), rel=SIDE), choice
    assert len(set(outs)) == len(outs), "rows that write to one place"
    assert scale == "desk" or not lines, "a header names rows that are none"


def go_through_the_plan(rows: Iterable[tuple[list[str], Recipe]], scale: str) -> None:
    for choice, read in rows:
        plan, model = costs.plan(read, paper.arms(read), gflops=50), paper.outline(read)
        frames = {"image": 1, "video": model.preprocess.frames}
        for modality in plan.flops:
            assert getattr(plan.tokens, modality) == model.count_tokens(frames[modality]), choice
        if scale == "desk":
            assert plan.memory["total"] < 2**30 and plan.time.run < 1800, choice


@pytest.mark.parametrize("scale", ["desk"], indirect=True)
def test_a_row_goes_through_the_plan(scale: str) -> None:
    go_through_the_plan(loaded(paper.PAPER / "table7a.yaml", scale)[:1], scale)


@pytest.mark.all
@pytest.mark.parametrize("path", paper.FILES, ids=lambda path: path.stem)
def test_rows_go_through_the_plan(path: Path, scale: str) -> None:
    go_through_the_plan(loaded(path, scale, whole=True), scale)


@pytest.mark.slow
@pytest.mark.parametrize("path", paper.FILES, ids=lambda path: path.stem)
def test_headers_say_what_the_plan_counts(path: Path, scale: str) -> None:
    if scale == "paper":
        said, planned = paper.said(path), dict(paper.planned(path))
        assert {row: line.tokens for row, line in said.items()} == {row: line.tokens for row, line in planned.items()}
        for row, line in planned.items():
            assert said[row] == pytest.approx(line, rel=0.03), row


def test_smaller_strides_give_the_tokens_that_table_7d_names(scale: str) -> None:
    path = paper.PAPER / "table7d.yaml"
    [(_, read)] = loaded(path, scale)
    lines = re.findall(rf"^# tokens scale={scale} (\d+): --strides (.+)$", path.read_text(), re.M)
    assert len(lines) == 3
    for count, strides in lines:
        model = paper.outline(read)
        pairs = (tube.split("=") for tube in strides.split())
        model.tokenizer.restride({name: [int(side) for side in sides.split(",")] for name, sides in pairs})
        assert model.count_tokens(model.preprocess.frames) == int(count)


@pytest.mark.parametrize("whole", [False, *at_length(True)])
def test_rows_of_a_table_differ(scale: str, whole: bool) -> None:
    """Two rows of a file are not the same experiment under two names."""
    for path in paper.FILES:
        pairs = itertools.combinations([read for _, read in loaded(path, scale, whole)], 2)
        alike = [(one.out, two.out) for one, two in pairs if replace(one, out=two.out) == two]
        assert not alike, path.name


def test_the_map_of_the_paper_names_every_recipe() -> None:
    text = (paper.PAPER.parents[1] / "docs" / "paper.md").read_text()
    assert not [path.name for path in paper.FILES if f"`recipes/paper/{path.name}`" not in text]
