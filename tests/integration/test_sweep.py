from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.marks import at_length
from support.runs import weights
from support.tools import tool

from scaleup.common.errors import UserError
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Recipe
from scaleup.model.build import load, load_run
from scaleup.training.run import train
from scaleup.training.run_inputs import build_models


@pytest.mark.all  # test_arms_end.py does it with more arms
@pytest.mark.parametrize("stage", [0, 2])
def test_an_arm_of_a_sweep_ends_as_the_same_arm_alone(tiny: Callable[..., Recipe], tmp_path: Path, stage: int) -> None:
    """Bit for bit, with dropout, drop path, mixup and cutmix, whatever trains beside it."""
    recipe = tiny("train.cutmix=1", f"train.zero_stage={stage}", f"out={tmp_path / 'together'}")
    arms = sweep_arms(recipe)
    train(recipe, arms)
    heads = []
    for name, arm in arms.items():
        train(tiny("train.cutmix=1", f"train.zero_stage={stage}", f"out={tmp_path / name}"), {"alone": arm})
        trained = weights(tmp_path / name / "alone")
        assert trained == weights(tmp_path / "together" / name), name
        heads.append(trained["heads.motion.weight"])
    assert len(set(heads)) == len(arms)  # they did learn, each in its own way


@pytest.mark.parametrize("stage", [2, *at_length(0, 1)])
def test_adapters_train_side_by_side_on_weights_that_stay(
    tiny: Callable[..., Recipe], tmp_path: Path, stage: int
) -> None:
    recipe = tiny(f"train.zero_stage={stage}", f"out={tmp_path / 'together'}")
    late = replace(recipe.arm, frozen_depth=1, gate=True, lora_rank=2)
    arms = {kind: replace(late, adapt=kind) for kind in ("lora", "dora", "ia3", "none")}
    arms |= {"full": recipe.arm, "wide": replace(late, adapt="lora", lora_rank=5, frozen_depth=0, gate=False)}
    begun = {name: model.named_tensors() for name, model in build_models(recipe, arms).items()}
    train(recipe, arms)
    for name in ("lora", "dora", "ia3", "wide"):
        trained = weights(tmp_path / "together" / name)
        kept = {key for key, tensor in begun[name].items() if trained[key] == tensor.detach().numpy().tobytes()}
        frozen = {key for key in trained if key.startswith("blocks.")}
        assert frozen <= kept
        if name != "wide":
            assert kept == {key for key in trained if not key.startswith(("base_model.", "heads.", "norm.", "gate."))}
        if name in ("lora", "wide"):
            train(tiny(f"train.zero_stage={stage}", f"out={tmp_path / name}"), {"alone": arms[name]})
            assert trained == weights(tmp_path / name / "alone")


def test_heads_alone_learn_what_they_learn_above_all_blocks(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """Blocks of an arm that stay frozen compute what the trunk's do: without drop path, without dropout."""
    recipe = tiny("train.kernels=library")  # lean ones round the arm's last block otherwise
    arms = {"none": replace(recipe.arm, frozen_depth=1, adapt="none"), "last": replace(recipe.arm, frozen_depth=3)}
    result = train(recipe, arms).arms
    assert weights(tmp_path / "out" / "none") == weights(tmp_path / "out" / "last")
    heads, norm = sum((24 + 1) * classes for classes in (8, 6, 8)), 2 * 24
    assert result["none"].trained_parameters == result["last"].trained_parameters == heads + norm
    assert result["none"].frozen_parameters == result["last"].frozen_parameters


def test_the_arms_of_a_sweep_load_together_as_each_does_alone(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """On a model that is loaded, the adapters' frozen weights are the trunk's own."""
    began = tiny(f"out={tmp_path / 'small'}", "train.steps=1")
    train(began, {"model": began.arm})
    recipe = tiny(f"out={tmp_path / 'sweep'}")
    recipe.model.load = str(tmp_path / "small" / "model")
    late = replace(recipe.arm, frozen_depth=1, gate=True)
    arms = {kind: replace(late, adapt=kind) for kind in ("lora", "ia3", "none")} | {"full": late}
    train(recipe, arms)
    clip = torch.rand(1, 3, 8, 32, 32)
    together = load_run(tmp_path / "sweep")
    for name, model in together.items():
        assert torch.equal(model(clip, "motion"), load(tmp_path / "sweep" / name)(clip, "motion"))
    frozen = [{p.data_ptr() for p in together[n].parameters() if not p.requires_grad} for n in ("lora", "ia3")]
    assert frozen[0] == frozen[1] and len(frozen[0]) > 3 * 12

    began_from = tmp_path / "small" / "model" / "model.safetensors"
    whole = load_file(began_from)
    save_file(whole | {"blocks.2.mlp.fc1.weight": whole["blocks.2.mlp.fc1.weight"] + 1}, began_from)
    with pytest.raises(UserError, match="ia3 started from has changed since; load this directory by itself"):
        load_run(tmp_path / "sweep")

    recipe = tiny(f"out={tmp_path / 'later'}")  # an adapter trains on
    recipe.model.load = str(tmp_path / "sweep" / "lora")
    train(recipe, {"model": arms["lora"]})
    first, later = weights(tmp_path / "sweep" / "lora"), weights(tmp_path / "later" / "model")
    assert {key for key in first if first[key] == later[key]} == {
        key for key in first if not key.startswith(("base_model.", "heads.", "norm.", "gate."))
    }


def test_the_tool_trains_the_arms_of_the_recipe(tiny_path: Path, tmp_path: Path) -> None:
    done = tool("sweep", tiny_path, f"out={tmp_path / 'out'}", "train.steps=2")
    assert done.returncode == 0, done.stderr
    for name in ("full", "last", "gated"):
        assert f"{name}: frozen depth" in done.stdout
        assert (tmp_path / "out" / name / "config.json").is_file()
    assert "alpha" in done.stdout and "trunk" in done.stdout and "training: 2/2" in done.stderr
