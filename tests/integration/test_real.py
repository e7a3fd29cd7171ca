"""``make real`` on a tiny backbone, with films and photographs that the test makes: all stages, and going on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from real import samples, stages
from real.claims import CLAIMS, verdicts
from real.exact import PRECISIONS, difference_to_timm
from real.frames import CHEAP, DEAR, DENSE, LATE, FrameReader, FrameTokens, Reading, order
from real.groups import ABLATIONS, DONORS, GROUPS, title
from real.image_features import PROGRAMS, name_by_ridge
from real.material import Material
from real.page import BEGIN, END, rewrite, write
from real.rows import Real
from real.stages import Stages
from scaleup.common.errors import UserError
from scaleup.common.files import read_json
from scaleup.config import recipe as recipes
from scaleup.config.schema import Arm, Recipe
from scaleup.data.generated import encode_mp4
from scaleup.model.build import load

BACKBONE, SIDE = "test_vit", 64  # 6 blocks of width 64
SMALL = "model.backbone.kwargs={embed_dim: 32, depth: 2, num_heads: 2, patch_size: 16}"
CHANGES = {
    "small": ["train.valid_every=0", f"model.input.size=[{SIDE},{SIDE}]", SMALL],
    "sweep": [
        *(f"arms.{name}.frozen_depth=6" for name in ("head", "attentive", "attentive_taps")),
        *(f"arms.{name}.frozen_depth=4" for name in ("last3", "last3_gate", "last3_attentive")),
        *(f"arms.{name}.pool_heads=2" for name in ("attentive", "attentive_taps", "last3_attentive")),
        "arms.attentive_taps.taps=[2,4]",
        "trunk.precision=float32",  # whichever is fastest differs from run to run
    ],
}
BOTH = ["train.steps=2", "train.warmup=1", "data.batch=4", "data.workers=0"]


class Tiny(Stages):
    """All stages, with recipes of the tiny backbone's size."""

    def _read(self, name: str, changes: Sequence[str] = (), **paths: str) -> Recipe:
        tiny = [change.replace("frozen_depth=6", "frozen_depth=2") for change in changes]  # the tiny one has 6 blocks
        return replace(self, changes=[*BOTH, *CHANGES[name]])._recipe(name, tiny, **paths)

    _recipe = Stages._read


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tiny backbone, two films that brighten, eight photographs of noise."""
    folder, rng = tmp_path_factory.mktemp("material"), np.random.default_rng(0)
    torch.manual_seed(0)
    save_file(timm.create_model(BACKBONE, num_classes=0).state_dict(), folder / "dinov2_s14.safetensors")
    for name in ("films", "photos"):
        (folder / name).mkdir()
    for name in ("sea", "sky"):
        picture = rng.integers(0, 200, (48, 64, 3))
        film = [np.clip(picture + frame // 2, 0, 255) for frame in range(80)]
        (folder / "films" / f"{name}.mp4").write_bytes(encode_mp4(np.stack(film).astype(np.uint8)))
    for number in range(8):
        picture = rng.integers(0, 255, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "photos" / f"{number}.png")
    return folder


def tiny(out: Path, material: Path) -> Tiny:
    videos = {name: {"train": 8, "val": 4, "test": 6} for name in ("scenes", "films")}
    images = {"scenes": {"train": 8}, "films": {}}
    return Tiny(out, material, (0, 1), (), True, BACKBONE, SIDE, (SIDE, 96), videos, images)


def draw(_: Path, folder: Path) -> None:
    """Two objects."""
    folder.mkdir(parents=True)
    for name, colour in (("ball", "red"), ("cube", "green")):
        Image.new("RGBA", (20, 20), colour).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def done(material: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Real]:
    """A complete run, and its figures."""
    out, fetched = tmp_path_factory.mktemp("real"), []

    def fetch(folder: Path) -> Material:
        fetched.append(folder)
        return Material.of(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "fetch_material", fetch)
        patch.setattr(stages, "draw_animals", draw)
        real = tiny(out, material).run()
    assert fetched == [material]
    return out, real


def test_every_model_has_a_row_with_each_seed(done: tuple[Path, Real], material: Path) -> None:
    out, real = done
    arms = recipes.sweep_arms(tiny(out, material)._read("sweep"))
    names = [*(("small", donor) for donor in DONORS), *(("transplanted", arm) for arm in arms)]
    controls = {name: group.arms for name, group in (GROUPS | ABLATIONS).items() if group.arms}
    names += [(group, arm) for group, some in controls.items() for arm in some]
    assert [(row.group, row.name) for row in real.rows] == [
        *names,
        *(("frames", each.name) for each in (*CHEAP, *DENSE, LATE, *DEAR)),
    ]
    for row in real.rows:
        assert row.top1.keys() == ({"film_motion", "film"} if "films" in title(row.group, row.name) else {*real.chance})
        once = row.name in [each.name for each in (LATE, *DEAR)]
        assert {len(shares) for shares in row.top1.values()} == {1 if once else 2}
        assert row.seconds > 0 and row.step_gflop >= row.clip_gflop > 0
    assert "last3_gate" in (out / "report.html").read_text()
    assert real.exact == {"64": 0.0, "96": 0.0}
    assert real.precisions["float32"]["drift"] == 0 < real.precisions["bfloat16"]["drift"] < 0.1
    moved = {name: each["drift"] for name, each in real.features.items()}
    assert moved["float32"] == 0 < moved["bfloat16"] < 0.1 and moved.keys() == {*PRECISIONS, *PROGRAMS}
    assert max(moved["torch"], moved["onnx"]) < 1e-5 < moved["onnx, half"] < 0.01


def test_classes_are_named_by_features_that_tell_them() -> None:
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    features = torch.randn(90, 8) + 4 * torch.eye(8)[labels]
    assert (name_by_ridge(features[:60], labels[:60], features[60:]) == labels[60:]).float().mean() > 0.9
    assert (name_by_ridge(features[:60].roll(1, 0), labels[:60], features[60:]) == labels[60:]).float().mean() < 0.5


def test_every_claim_is_about_rows_that_are_there(done: tuple[Path, Real]) -> None:
    lines = [f"{claim.better} > {claim.worse} by {claim.head}" for _, claim, _ in verdicts(done[1])]
    assert lines == [line for some in CLAIMS.values() for line in some]
    assert len({title(row.group, row.name) for row in done[1].rows}) == len(done[1].rows)


def test_a_small_model_is_compared_with_each_seed_of_an_arm(done: tuple[Path, Real]) -> None:
    """Its one seed stands against each; two small models have one seed, and so no verdict."""
    shares = {"last3": [0.5, 0.6, 0.7], "small": [0.1], "films": [0.2], "films_one_tube": [0.1]}
    some = [row for row in done[1].rows if row.group in ("small", "transplanted")]
    rows = [replace(row, top1=dict.fromkeys(row.top1, shares.get(row.name, [0.0]))) for row in some]
    found = {(each.better, each.worse): verdict for _, each, verdict in verdicts(replace(done[1], rows=rows))}
    heir = found["last3", "small model"]
    assert heir.word == "holds" and heir.difference == pytest.approx(0.5)
    assert heir.interval == pytest.approx(4.303 * 0.1 / 3**0.5)  # Student's t of two degrees of freedom
    assert found["small model, films alone", "small model, films, one tube"].word == "one seed"


def test_arms_of_a_group_stand_on_its_tubes(done: tuple[Path, Real]) -> None:
    """By the report that an arm keeps of its transplant, and by the datasets of its run."""
    for name, group in (GROUPS | ABLATIONS).items():
        arm = load(done[0] / f"sweep-{name}-1" / ("last6" if name == "half" else "attentive"))
        tubes = load(done[0] / group.tubes)
        assert all(
            torch.equal(a, b) for a, b in zip(arm.tokenizer.parameters(), tubes.tokenizer.parameters(), strict=True)
        )
        sets = recipes.load(done[0] / f"sweep-{name}-1" / "recipe.yaml").data.train
        assert ("images" in sets) == (name == "with_images")
    caches = {group.cache or group.tubes for group in (GROUPS | ABLATIONS).values()}
    assert {path.name for path in done[0].glob("cache-*")} == {f"cache-{name}" for name in caches}


def test_a_step_of_frozen_blocks_costs_no_backward_pass(done: tuple[Path, Real]) -> None:
    rows = {(row.group, row.name): row for row in done[1].rows}
    head, late = rows["transplanted", "head"], rows["transplanted", "last3"]
    assert head.step_gflop < 1.01 * head.clip_gflop and late.step_gflop > 1.2 * late.clip_gflop
    two, eight = (rows["frames", f"{frames} frames, mean"] for frames in (2, 8))
    assert eight.clip_gflop == pytest.approx(4 * two.clip_gflop, rel=0.02) and eight.cache_bytes == 4 * two.cache_bytes


def test_a_complete_stage_is_not_run_again(done: tuple[Path, Real], material: Path) -> None:
    out, real = done
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    again = tiny(out, material).run()
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == before
    assert again == replace(real, machine=again.machine)


def test_the_page_keeps_what_stands_around_its_figures(done: tuple[Path, Real], tmp_path: Path) -> None:
    _, real = done
    write(real, tmp_path)
    assert read_json(tmp_path / "real.json")["chance"] == real.chance and (tmp_path / "real.png").stat().st_size > 10000
    page = tmp_path / "page.md"
    with pytest.raises(UserError, match=r"page.md' cannot take figures"):
        rewrite(page, real)
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    rewrite(page, real)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    first, rest = text.split("With one thing changed:")
    assert (
        "| last3, random tubes |" in first
        and "| attentive, aligned tubes |" in rest
        and (tmp_path / "page.json").exists()
    )


def test_the_picture_shows_frames_of_each_sample(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what may be shown, and nothing else of the material."""
    for kind, own, names in (("photos", "0.png", samples.PHOTOS), ("films", "sea.mp4", [samples.FILM])):
        (tmp_path / kind).mkdir()
        for name in names:
            (tmp_path / kind / name).write_bytes((material / kind / own).read_bytes())
    monkeypatch.setattr(samples, "draw_animals", draw)
    samples.draw_samples(Material.of(tmp_path), tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as image:
        rows = len(samples.SCENES) + len(samples.CLIPS)
        assert image.size == (samples.SHOWN * (112 + samples.GAP), rows * (112 + samples.GAP))
        pixels = np.asarray(image.convert("RGB"))[: -samples.GAP]
    frames = pixels[-112:].reshape(112, samples.SHOWN, -1, 3)[:, :, :112]  # of the film, which brightens
    assert frames[:, -1].mean() > frames[:, 0].mean() + 5


def test_frames_are_the_frozen_vit_on_each_frame(done: tuple[Path, Real]) -> None:
    """What was stored is compared with timm's own blocks on each frame."""
    from scaleup.data.loader import eval_loader
    from scaleup.data.shards import Shards

    out, _ = done
    stored = FrameTokens.read(out / "frames/films-test", (4, 6))
    model = load(out / "transplanted").eval()
    (batch,) = eval_loader(Shards.open(out / "data/films/videos-test"), {"m": "motion"}, model.config.input, batch=6)
    assert (stored.labels["film_motion"] == batch.labels["m"].numpy()).all()
    pictures = model.preprocess(batch.pixels[:, 0])[:, :, ::4].transpose(1, 2)  # every second of the 8 stored frames
    tokens, _ = stored.batch(np.arange(6), 6, 4)
    own = timm.create_model(BACKBONE, num_classes=0, img_size=SIDE)
    with torch.no_grad():
        x = model.tokenize(pictures.flatten(0, 1))
        for block in model.blocks:
            x = block(x)
    assert tokens.shape == (6, 4, *x.shape[1:]) and own.num_prefix_tokens + 16 == x.shape[1]
    assert (tokens.flatten(0, 1) - x).abs().max() < 2e-3 * x.abs().max()


def test_a_reader_knows_the_order_of_frames_unless_it_takes_their_mean(done: tuple[Path, Real]) -> None:
    model, arm = load(done[0] / "transplanted"), Arm(frozen_depth=6, pool_heads=2)
    tokens = torch.randn(2, 4, 17, 64)
    for kind, knows in (("mean", False), ("attentive", True)):
        reader = FrameReader.of(model, Reading(4, kind), arm, {"m": ["a", "b"]}, 0)
        if reader.positions is not None:
            torch.nn.init.normal_(reader.positions)
        same = torch.allclose(reader.features(tokens), reader.features(tokens.flip(1)), atol=1e-5)
        assert same is not knows


def test_an_epoch_of_frames_has_every_clip_once(done: tuple[Path, Real], material: Path) -> None:
    recipe = tiny(done[0], material)._read("sweep")
    sets = {name: FrameTokens({}, {"h": np.zeros(12)}) for name in ("scenes", "films")}
    drawn: dict[str, list[int]] = {"scenes": [], "films": []}
    for name, numbers in order(sets, recipe, 300):
        drawn[name].extend(numbers)
    for numbers in drawn.values():
        for begin in range(0, len(numbers) - 11, 12):
            assert sorted(numbers[begin : begin + 12]) == list(range(12))
    assert 1.6 < len(drawn["scenes"]) / len(drawn["films"]) < 2.5  # weights 2 and 1


def test_the_comparison_with_timm_sees_another_weight(done: tuple[Path, Real], material: Path) -> None:
    model = load(done[0] / "transplanted")
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias[0] += 0.1
    assert difference_to_timm(model, BACKBONE, Material.of(material), SIDE) > 1e-5
