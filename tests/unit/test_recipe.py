import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from scaleup.checkpoint.model_directory import ModelConfig
from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.compose import combinations, compose
from scaleup.config.rules import check
from scaleup.config.schema import Arm, Recipe
from scaleup.model.build import load_run

OF_ALL = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in OF_ALL.rglob("*.yaml") if "paper" not in path.parts)  # those: test_paper_recipes.py
GOOD = """
out: runs/a
model:
  tubes:
    long: {kernel: [8, 8, 8], stride: [16, 32, 32]}
data:
  train:
    clips: {shards: SHARDS, heads: {action: label}}
train: {steps: 100}
arm: {lr: 1e-3}
arms:
  last: {frozen_depth: 12}
  gated: {frozen_depth: 8, gate: true, lr: "2e-3"}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    path = tmp_path / "good.yaml"
    path.write_text(GOOD.replace("SHARDS", str(tmp_path / "shards")))
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as raised:
        recipe.load(path, overrides)
    return str(raised.value).split("\n  - ")[1:]


def test_a_recipe_is_read_over_the_defaults(good: Path) -> None:
    read = recipe.load(good)
    assert read.model.tubes["long"].stride == [16, 32, 32] and read.model.tubes["long"].fold == [1, 1, 1]
    assert read.arm.lr == 0.001 and read.train.optimizer == "adamw" and read.train.steps == 100


def test_overrides_reach_everything(good: Path) -> None:
    changes = ["model.tubes.long.stride=[6,32,32]", "arm.frozen_depth=24", "arms.last.lr=3e-4", "train.betas=[0.8,0.9]"]
    changes += [
        "data.train.clips.augment.flip=false",
        "model.backbone.kwargs.depth=3",
        "model.tubes.new.kernel=[4,4,4]",
    ]
    read = recipe.load(good, [*changes, "model.tubes.new.stride=[8,8,8]"])
    assert read.model.tubes["long"].stride == [6, 32, 32] and read.model.tubes["new"].kernel == [4, 4, 4]
    assert read.arm.frozen_depth == 24 and read.arms["last"]["lr"] == 3e-4 and read.train.betas == [0.8, 0.9]
    assert read.data.train["clips"].augment.flip is False and read.model.backbone.kwargs == {"depth": 3}


def test_a_share_may_be_a_percentage(good: Path) -> None:
    assert recipe.load(good, ["data.max_bad=2.5%"]).data.max_bad == 0.025


def test_shards_may_be_at_an_address(good: Path) -> None:
    address = "https://host/train"
    assert recipe.load(good, [f"data.train.clips.shards={address}"]).data.train["clips"].shards == address


def test_arms_of_a_sweep_are_the_arm_with_changes(good: Path) -> None:
    arms = recipe.sweep_arms(recipe.load(good, ["arm.clip=0.5"]))
    assert arms == {
        "last": Arm(frozen_depth=12, lr=0.001, clip=0.5),
        "gated": Arm(frozen_depth=8, gate=True, lr=0.002, clip=0.5),
    }


def test_a_sweep_without_arms_is_refused() -> None:
    with pytest.raises(UserError, match="no arms"):
        recipe.sweep_arms(Recipe())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("trian.steps=3", "trian: unknown key; nearest: 'train'"),
        ("model.tubes.long.kernal=[8,8,8]", "model.tubes.long.kernal: unknown key; nearest: 'kernel'"),
        ("data.train.clips.augment.flop=true", "data.train.clips.augment.flop: unknown key; nearest: 'flip'"),
        ("arms.last.frozen=3", "arms.last.frozen: unknown key; nearest: 'frozen_depth'"),
        ("arms.last.lr=-1", "arms.last.lr: -1 is not a number above 0"),
        ("arms.last=5", "arms.last: 5 is not a mapping of settings"),
        ("arms.a/b={}", "arms: 'a/b' is not a name made of letters, digits, '_' and '-'"),
        ("arms.tensorboard={}", "arms.tensorboard: this name is reserved"),
        ("arms.last.gate=true arms.last.frozen_depth=0", "arms.last.gate: a gate needs frozen blocks"),
        ("model.tubes.long.kernel=[8,8]", "model.tubes.long.kernel: [8, 8] is not a list [t, h, w]"),
        ("model.tubes.long.kernel=[8,8,0]", "model.tubes.long.kernel: [8, 8, 0] is not a list [t, h, w]"),
        ("model.tubes.long.stride=[8,[1],8]", "model.tubes.long.stride: [8, [1], 8] is not a list [t, h, w]"),
        ("model.tubes.new.kernel=[1,1,1]", "model.tubes.new.stride: is missing"),
        ("model.tubes=3", "model.tubes: 3 is not a mapping of names to settings"),
        ("model.positions.kind=cosin", "nearest: 'cosine'"),
        ("model=null", "model: None is not a mapping of settings"),
        ("model.load=runs/a/model", "model.tubes: cannot change a loaded model (model.load)"),
        ("data.train.clips.shards=nowhere", "data.train.clips.shards: 'nowhere' is not a directory"),
        ("data.train.clips.weight=0", "data.train.clips.weight: 0 is not a number above 0"),
        ("data.train.clips.heads={a.b: label}", "is not a mapping of head names"),
        ("data.train.clips.augment.crop_scale=[0.9,0.2]", "low <= high"),
        ("data.workers=1.5", "data.workers: 1.5 is not a whole number of at least 0"),
        (
            "train.log=[tensorboard,wnadb]",
            "'wnadb' is not one of 'tensorboard', 'wandb', 'trackio'; nearest: 'wandb'",
        ),
        ("train.log=3", "train.log: 3 is not a list of values"),
        ("train.optimizer=adamv", "is not one of 'adamw', 'adam'; nearest:"),
        ("train.warmup=101", "train.warmup: 101 is more than train.steps, 100"),
        ("arms.last.steps=101", "arms.last.steps: 101 is more than train.steps, 100"),
        ("train.warmup=9 arms.last.steps=8", "arms.last.warmup: 9 is more than arms.last.steps, 8"),
        ("arms.last.patience=2", "arms.last.patience: 2 counts validations, but train.valid_every is 0"),
        ("train.valid_every=5", "train.valid_every: 5 needs a validation set (data.valid)"),
        ("data.valid={heads: {motion: label}}", "data.valid.shards: is missing"),
        (
            "trunk.precision=bf16",
            "trunk.precision: 'bf16' is not one of 'float32', 'bfloat16'",
        ),
        ("trunk.placement=disk", "trunk.placement: disk needs a loaded model"),
        (
            "train.cuda_graphs=trunk trunk.placement=host",
            "train.cuda_graphs: trunk records frozen blocks that stay on a GPU, but with trunk.placement host they do",
        ),
        ("train.cuda_graphs=trunk trunk.cache=https://there", "but with trunk.cache they do not"),
        (
            "train.cuda_graphs=trunk arms.last.frozen_depth=0 arms.gated=null",
            "train.cuda_graphs: trunk records frozen blocks, but no arm has any (frozen_depth)",
        ),
        (
            "trunk.placement=host arms.last.frozen_depth=0 arms.gated=null",
            "trunk.placement: host is for frozen blocks, but no arm has any",
        ),
        ("arm.lora_rank=4", "arms.last.lora_rank: 4 is for adapt lora and dora, which no arm has"),
        ("arms.gated.pool_heads=4", "arms.gated.pool_heads: 4 is for pool attentive, which no arm has"),
        (
            "data.train.clips.augment.randaugment_magnitude=5",
            "augment.randaugment_magnitude: 5 is for data.train.clips.augment.randaugment_layers, which is 0",
        ),
        ("train.mixup=.nan", "train.mixup: nan is not a number of at least 0"),
        ("train.betas=[0.9,1]", "train.betas: [0.9, 1] is not a list [beta1, beta2]"),
        ("train.offload=true", "train.offload: True needs ZeRO, but train.zero_stage is 0"),
        ("train.zero_stage=4", "train.zero_stage: 4 is not 0, 1, 2 or 3"),
        ("train.zero_stage=true", "train.zero_stage: True is not 0, 1, 2 or 3"),
        ("arm.lr=fast", "arm.lr: 'fast' is not a number above 0"),
        ("arm.lr=.inf", "arm.lr: inf is not a number above 0"),
        ("arm.adapt=loar", "arm.adapt: 'loar' is not one of 'full', 'lora', 'dora', 'ia3', 'none'; nearest: 'lora'"),
        ("arm.lora_rank=0", "arm.lora_rank: 0 is not a whole number of at least 1"),
        ("arms.last.lora_alpha=0", "arms.last.lora_alpha: 0 is not a number above 0"),
        (
            "arm.precision=float16",
            "arm.precision: 'float16' is not one of 'float32', 'bfloat16', 'auto'; nearest: 'bfloat16'",
        ),
        ("arm.gate=maybe", "arm.gate: 'maybe' is not one of False, True, 'channel'"),
        ("data.max_bad=101%", "data.max_bad: '101%' is not a number between 0 and 1"),
        ("data.max_bad=x%", "data.max_bad: 'x%' is not a number between 0 and 1"),
        ("nonsense", "'nonsense' is not key=value"),
    ],
)
def test_a_mistake_is_said_once_with_its_path(good: Path, change: str, said: str) -> None:
    found = mistakes(good, *change.split(" ")) if "{" not in change else mistakes(good, change)
    assert len(found) == 1 and said in found[0], found


@pytest.mark.parametrize("content", [[1], "text", None, 3])
def test_what_is_no_mapping_is_said(content: object) -> None:
    assert check(Recipe, content) == (None, ["it is not a mapping of settings"])


def test_a_setting_that_one_of_the_arms_reads_is_no_mistake(good: Path) -> None:
    changes = ["arm.lora_rank=4", "arms.gated.adapt=lora", "trunk.placement=host", "arms.last.frozen_depth=0"]
    assert recipe.load(good, changes).arm.lora_rank == 4


def test_a_list_of_arms_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("arms: [{lr: 1}]")
    assert mistakes(tmp_path / "list.yaml") == ["arms: [{'lr': 1}] is not a mapping of names to settings"]


def test_all_mistakes_are_said_at_once(good: Path) -> None:
    changes = ["trian.steps=3", "arm.lr=-1", "arms.last.frozen=3", "model.positions.kind=cosin", "train.warmup=1000"]
    changes += ["model.tubes.long.kernel=[8]", "data.train.clips.shards=nowhere", "arms.gated.frozen_depth=0", "x"]
    assert [found.split(":")[0] for found in mistakes(good, *changes)] == [
        "'x' is not key=value",
        "model.tubes.long.kernel",
        "model.positions.kind",
        "arm.lr",
        "arms.last.frozen",
        "trian",
        "data.train.clips.shards",
        "train.warmup",
        "arms.gated.gate",
    ]


@pytest.mark.parametrize("content", ["a: [", "a: 1\n  b: 2", "out: ${nowhere}", "\x00", "just text"])
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="bad.yaml") as raised:
        recipe.load(path)
    assert "\n" not in str(raised.value).replace("\n  - ", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        ("a: [", "while parsing a flow"),
        ("- a", "it is not a mapping of settings"),
        ("trunk: {placment: host}", "trunk.placment: unknown key; nearest: 'placement'"),
    ],
)
def test_a_directory_without_the_recipe_of_a_run_is_refused_in_one_line(
    tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(UserError, match=f"recipe.yaml' cannot be read .*{said}") as raised:
        load_run(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_said_with_the_nearest(good: Path) -> None:
    with pytest.raises(UserError, match="god.yaml'; nearest: 'good.yaml'"):
        recipe.load(good.with_name("god.yaml"))


@pytest.mark.parametrize("changes", [[], ["arm.frozen_depth=2", "model.interpolate=[8,8,8]"]])
def test_a_saved_recipe_reads_back_the_same(good: Path, tmp_path: Path, changes: list[str]) -> None:
    read = recipe.load(good, changes)
    recipe.save(read, tmp_path / "saved.yaml")
    assert recipe.load(tmp_path / "saved.yaml") == read
    assert not list(tmp_path.glob("*.tmp"))


def test_a_saved_recipe_of_a_loaded_model_reads_back(tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text("model: {load: runs/small/model}")
    read = recipe.load(tmp_path / "bare.yaml")
    recipe.save(read, tmp_path / "saved.yaml")
    assert recipe.load(tmp_path / "saved.yaml") == read


def paths(schema: type, prefix: str = "") -> dict[str, Any]:
    """Every setting of a dataclass and its type, entries of mappings as ``*``."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(schema, include_extras=True).items():
        types[prefix + name] = kind
        plain = get_type_hints(schema)[name]
        choices = [choice for choice in (plain, *get_args(plain)) if dataclasses.is_dataclass(choice)]
        for choice in choices:
            types |= paths(choice, f"{prefix}{name}." if get_origin(plain) is not dict else f"{prefix}{name}.*.")  # type: ignore[arg-type]
    return types


def test_every_number_and_every_list_has_limits_in_words() -> None:
    types = paths(Recipe) | paths(ModelConfig, "config.")
    assert types["model.tubes.*.kernel"] == types["config.tubes.*.kernel"] and len(types) > 90
    limited = [path for path, kind in types.items() if re.search(r"\b(int|float|list)\b", str(kind))]
    limited = [path for path in limited if path.split(".")[0] not in ("arms", "grid")]  # as arm's
    without = [path for path in limited if "WrapValidator" not in str(types[path])]
    assert sorted(without) == ["config.backbone.seed", "config.heads", "train.log"]  # the last names its choices


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for choice in combinations(path):
        chosen = [f"{group}={name}" for group, name in choice.items()]
        data = compose(path, chosen, [], []).get("data", {})
        for dataset in [*data.get("train", {}).values(), *([data["valid"]] if "valid" in data else [])]:
            if dataset is not None:
                Path(dataset["shards"]).mkdir(parents=True, exist_ok=True)
        recipe.load(path, chosen)


LITERAL = [
    "2024_01_02",
    "007",
    "12:30:45",
    "1e3",
    "no",
    "true",
    "0x10",
    "runs/try #3",
    "#3",
    "a,b=c",
    "[1]",
    "{a",
    "'a b'",
]
LITERAL += ["%a", "x: y", "a b", "été", "- a", "&a", "*a", "!a", "2024-01-02", " a ", "a\\b", "1_000", ".inf", "nan"]


@pytest.mark.parametrize("text", LITERAL)
def test_text_is_taken_as_it_is_written(good: Path, tmp_path: Path, text: str) -> None:
    changes = [f"out={text}", f"data.train.clips.heads.action={text}", f"data.train[clips].heads.motion={text}"]
    read = recipe.load(good, [*changes, f"model.backbone.weights={text}"])
    assert (read.out, read.model.backbone.weights) == (text, text)
    assert read.data.train["clips"].heads == {"action": text, "motion": text}
    recipe.save(read, tmp_path / "saved.yaml")
    assert recipe.load(tmp_path / "saved.yaml") == read


@pytest.mark.parametrize("text", ["2024_01_02", "007", "12:30:45", "1e3", "no", "0x10", "1.50"])
def test_text_in_a_file_is_taken_as_it_is_written(good: Path, text: str) -> None:
    content = good.read_text().replace("runs/a", text).replace("{action: label}", f"{{action: {text}, {text}: label}}")
    good.write_text(content + f"variants: {{size: {{{text}: {{seed: 3}}}}}}\n")
    if text not in ("12:30:45", "1.50"):  # no names of heads
        read = recipe.load(good, [f"size={text}"])
        assert read.data.train["clips"].heads == {"action": text, text: "label"} and read.seed == 3
    good.write_text(content.replace(f", {text}: label", ""))
    assert recipe.load(good).out == text
    good.write_text(
        content.replace(f", {text}: label", "").replace(f"out: {text}", "out: a-${data.train.clips.heads.action}")
    )
    assert recipe.load(good).out == f"a-{text}"


def test_words_inside_lists_and_mappings_are_text_where_the_setting_is(good: Path) -> None:
    changes = ["data.train.clips.heads={action: no, 007: 1_0}", "model.backbone.kwargs={a: no, b: 007, c: [010, 1_0]}"]
    read = recipe.load(good, changes)
    assert read.data.train["clips"].heads == {"action": "no", "007": "1_0"}
    assert read.model.backbone.kwargs == {"a": False, "b": 7, "c": [10, 10]}
    said = mistakes(good, "grid.adapt=[no,lora]", "arm.frozen_depth=2", "grid.gate=[no,channel]")
    assert len(said) == 1 and said[0].startswith("grid.adapt: 'no' is not one of 'full', 'lora'")


def test_no_value_is_still_no_value(good: Path) -> None:
    for word in ("null", "~", ""):
        read = recipe.load(good, [f"model.backbone.weights={word}", f"trunk.cache={word}", f"arms.last={word}"])
        assert read.model.backbone.weights is read.trunk.cache is None and list(read.arms) == ["gated"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("out=???", "out: '???' refers to another value"),
        ("out=${seed}", "out: '${seed}' refers to another value"),
        ("seed=${train.steps}", "seed: '${train.steps}' refers to another value"),
        ("train.steps=[", "train.steps: '[' is not a YAML value"),
        ("train.steps=12:30", "train.steps: '12:30' is not a whole number of at least 1"),
        ("=3", "'=3' is not key=value"),
        ("[=3", "'[' is not a key"),
        ("train..steps=3", "'train..steps' is not a key"),
        ("model.input.size[0]=64", "model.input.size: {'0': 64} is not a list [height, width]"),
    ],
)
def test_words_that_cannot_be_taken_as_they_are_written_are_refused(good: Path, change: str, said: str) -> None:
    found = mistakes(good, change, "trian.steps=3")
    assert len(found) == 2 and said in found[0] and "nearest: 'train'" in found[1]


def test_numbers_are_decimal(good: Path) -> None:
    assert recipe.load(good, ["train.steps=0100", "arm.frozen_depth=0x10"]).train.steps == 100
    assert recipe.load(good, ["train.steps=1_000"]).train.steps == 1000


def test_what_is_no_text_where_text_belongs_is_refused_in_a_sentence(good: Path) -> None:
    (found,) = mistakes(good, "data.train.clips.heads={action: {deep: label}}")
    assert found.startswith("data.train.clips.heads: {'action': {'deep': 'label'}} is not a mapping of head names to")


def test_the_arms_of_a_grid_keep_the_order_in_which_its_settings_are_written(good: Path) -> None:
    read = recipe.load(good, ["grid={lr: [0.1, 0.2], frozen_depth: [3]}"])
    assert list(read.grid) == ["lr", "frozen_depth"] and list(recipe.sweep_arms(read))[-1] == "lr2e-1_depth3"


def test_a_logger_that_is_listed_twice_is_named(good: Path) -> None:
    with pytest.raises(UserError, match="train.log: .*names tensorboard twice"):
        recipe.load(good, ["train.log=[tensorboard,tensorboard]"])
