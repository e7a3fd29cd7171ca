from pathlib import Path

import pytest

from scaleup.common.errors import UserError
from scaleup.common.model_choice import choose

VIT = ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.qkv.weight")
FILE = Path("runs/big.pt")


def held(*before: str, names: tuple[str, ...] = VIT) -> dict[str, int]:
    return {place + name: 8 for place in before for name in names}


def taken(sizes: dict[str, int], wanted: str | None = None) -> tuple[str, str]:
    """What stood before the names of the tensors that were taken, and what is said."""
    names, said = choose(FILE, sizes, wanted)
    (before,) = {there.removesuffix(name) for name, there in names.items()}
    return before, said


@pytest.mark.parametrize("names", [VIT, ("weight", "tubes.long.bias")])
@pytest.mark.parametrize(
    ("places", "best"),
    [
        (["state_dict/", "state_dict_ema/"], "state_dict_ema/"),
        (["model/", "model_ema/"], "model_ema/"),
        (["model_ema/", "state_dict_ema/module."], "state_dict_ema/module."),
        (["model/", "state_dict/"], "state_dict/"),
        (["model/module.", "ema/module."], "ema/module."),
        (["model_state_dict/", "ema_state_dict/"], "ema_state_dict/"),
        (["student/module.backbone.", "teacher/backbone."], "teacher/backbone."),
        (["model/student.backbone.", "model/teacher.backbone."], "model/teacher.backbone."),
        (["state_dict/student.", "state_dict/teacher.", "state_dict/model."], "state_dict/teacher."),
        (["state_dict/model.", "state_dict/model_ema.module."], "state_dict/model_ema.module."),
        (["encoder/module.", "target_encoder/module."], "encoder/module."),
        (["target_encoder/module.backbone."], "target_encoder/module.backbone."),
        (["module/"], "module/"),
        (["network/net."], "network/net."),
        (["model/state_dict/"], "model/state_dict/"),
        (["params/"], "params/"),
        (["ema."], "ema."),
    ],
)
def test_the_model_that_is_taken(places: list[str], best: str, names: tuple[str, ...]) -> None:
    for order in (places, places[::-1]):
        before, said = taken(held(*order, names=names))
        assert before == best
        assert not places[1:] or (said.startswith("holds ") and "; taking " in said and "choose with FILE:" in said)


def test_what_a_file_holds_is_said_and_may_be_chosen() -> None:
    sizes = held("state_dict/", "state_dict_ema/")
    assert taken(sizes)[1] == (
        "holds state_dict and state_dict_ema; taking state_dict_ema, as timm does; choose with FILE:state_dict"
    )
    assert taken(sizes, "state_dict") == ("state_dict/", "")
    assert taken(held("teacher/backbone."))[1] == "holds teacher, which is taken"
    assert taken(held("state_dict/"))[1] == taken(held(""))[1] == ""


@pytest.mark.parametrize("wanted", ["student", "model.student", "student.backbone", "model.student.backbone"])
def test_a_model_may_be_named_by_any_part_of_its_place(wanted: str) -> None:
    assert taken(held("model/student.backbone.", "model/teacher.backbone."), wanted)[0] == "model/student.backbone."


def test_a_place_that_no_trainer_uses_may_be_named() -> None:
    sizes = held("") | held("copies/old.", names=("weight", "bias"))
    assert taken(sizes, "copies.old")[0] == "copies/old."
    assert taken(held("", "ema."), "rest")[0] == ""


@pytest.mark.parametrize("wanted", ["taecher", "", "patch_embed.proj.weight", "teacher.patch_embed.proj.weight"])
def test_a_choice_that_is_not_there_is_refused(wanted: str) -> None:
    with pytest.raises(UserError, match="runs/big.pt has no model '.*'; allowed are student and teacher") as error:
        taken(held("student/", "teacher/"), wanted)
    assert wanted != "taecher" or "nearest: 'teacher'" in str(error.value)


@pytest.mark.parametrize("names", [VIT, ("weight",)])
def test_models_that_cannot_be_told_apart_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="tensors of two models, model and module; name one of them: runs/big.pt:model"):
        taken(held("model.", "module.", names=names))
    with pytest.raises(UserError, match="tensors of 3 models, image_encoder, left and right; name one of them"):
        taken(held("image_encoder.", "left.", "right."))
    with pytest.raises(UserError, match="two tensors with one name, a.weight and a._orig_mod.weight"):
        taken({"a.weight": 8, "a._orig_mod.weight": 8})


@pytest.mark.parametrize(
    "wrapped",
    [
        "_orig_mod.module.{}.{}",
        "module._orig_mod.{}.{}",
        "_fsdp_wrapped_module.{}._fsdp_wrapped_module.{}",
        "model._orig_mod.module.{}.module._orig_mod.{}",
        "{}._checkpoint_wrapped_module.{}",
        "{}._orig_mod.{}",
        "net.{}.module.{}",
    ],
)
def test_what_wraps_a_module_comes_off_at_any_depth(wrapped: str) -> None:
    sizes = {wrapped.format("blocks.0", "attn.qkv.weight"): 8, wrapped.split("{}")[0] + "patch_embed.proj.weight": 8}
    assert set(choose(FILE, sizes, None).names) == {"blocks.0.attn.qkv.weight", "patch_embed.proj.weight"}


def test_names_that_users_give_stay() -> None:
    sizes = dict.fromkeys(["patch_embed.proj.weight", "heads.module.weight", "tubes.model.weight", "heads.ema.bias"], 8)
    assert choose(FILE, sizes, None).names == {name: name for name in sizes}


def test_what_is_no_models_is_said_to_be_left_out() -> None:
    beside = {"teacher/dino_head.mlp.0.weight": 8, "teacher/ibot_head.weight": 8, "optimizer/state/0/exp_avg": 8}
    sizes = held("teacher/backbone.") | beside | {"loss_scale": 8, "n_averaged": 1, "center": 8}
    assert taken(sizes)[1] == (
        "holds teacher, which is taken; teacher.dino_head, teacher.ibot_head and center left out"
    )


@pytest.mark.parametrize(
    "name", ["visual.conv1.weight", "text.token_embedding.weight", "transformer.resblocks.0.ln_1.bias", "head.weight"]
)
def test_towers_of_one_model_stay_together(name: str) -> None:
    names = ("visual.class_embedding", name)
    assert set(choose(FILE, held("state_dict/module.", names=names), None).names) == set(names)


@pytest.mark.parametrize(
    "patches",
    [
        "vision_model.embeddings.patch_embedding.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.weight",
        "visual.trunk.patch_embed.proj.weight",
        "preprocessor.patchifier.proj.weight",
        "radio_model.model.patch_generator.embedder.weight",
        "beit3.vision_embed.proj.weight",
        "tokenizer.stem.patch_embed.proj.weight",
    ],
)
def test_names_of_a_layout_stay(patches: str) -> None:
    names = (patches, "encoder.layer.0.weight", "logit_scale")
    assert set(choose(FILE, held("model.", names=names), None).names) == set(names)
