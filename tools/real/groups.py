"""The groups of rows: which small model's tubes go into the ViT, in which way, and which arms train on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CONTROLS = ("attentive", "last3")  # the arms of controls
QUERIES = ("attentive", "attentive_taps")  # of the last depth, and of three


@dataclass(frozen=True)
class Donor:
    """A small model.

    Args:
        title: on the page.
        changes: to the recipe of the small model.
    """

    title: str
    changes: Sequence[str] = ()


NO_SCENES = ("data.train.scenes=null",)
FILMS = (*NO_SCENES, "data.train.images=null", "data.valid=null", "train.valid_every=0", "train.steps=400")
DONORS = {
    "small": Donor("small model"),
    "films": Donor("small model, films alone", FILMS),  # a short training, which those below differ from in one thing
    "films_one_tube": Donor("small model, films, one tube", (*FILMS, "model.tubes.long=null")),
    "films_folded": Donor(  # denser in time: 3 x 49 tokens of two places each, where the others have 2 x 49
        "small model, films, tubes folded in time",
        (*FILMS, "model.tubes.short.stride=[4,16,16]", "model.tubes.short.fold=[2,1,1]"),
    ),
    "films_learned": Donor("small model, films, learned positions", (*FILMS, "model.positions.kind=learned")),
    "films_narrow": Donor(  # of a width that does not divide the ViT's
        "small model, films, width 160",
        (*FILMS, "model.backbone.kwargs.embed_dim=160", "model.backbone.kwargs.num_heads=4"),
    ),
}


@dataclass(frozen=True)
class Tubes:
    """An adapted model: a donor's tubes in the ViT.

    Args:
        donor: of DONORS.
        options: of the transplant.
    """

    donor: str = "small"
    options: Mapping[str, Any] = field(default_factory=dict)


TUBES = {
    "transplanted": Tubes(),
    "matched": Tubes(options={"match_scale": True}),
    "random": Tubes(options={"random_tubes": True}),
    "aligned": Tubes(options={"match": "align"}),
    "cosine": Tubes(options={"positions": "cosine"}),  # in place of the ViT's own grid
    "of_films": Tubes("films"),
    "one_tube": Tubes("films_one_tube"),
    "folded": Tubes("films_folded"),
    "narrow": Tubes("films_narrow"),
}


@dataclass(frozen=True)
class Group:
    """Arms that train alike on one adapted model.

    Args:
        tubes: of TUBES.
        title: what follows the name of an arm on the page.
        arms: of the recipe; None: all.
        changes: to the recipe of the sweep; ``{out}`` is the run's directory.
        cache: name of the token cache; None: that of the tubes.
    """

    tubes: str
    title: str
    arms: Sequence[str] | None = CONTROLS
    changes: Sequence[str] = ()
    cache: str | None = None


IMAGES = (  # every fourth step is one of images, so that as many see clips as elsewhere
    "data.train.images.shards={out}/data/scenes/images-train",
    "data.train.images.heads.object=object",
    "data.train.images.augment.crop_scale=[1, 1]",
    "data.train.images.augment.crop_ratio=[1, 1]",
    "data.train.images.augment.flip=false",
    "train.steps=400",
)
CROPS = tuple(f"data.train.{name}.augment.crop_scale=[0.5,1]" for name in ("scenes", "films"))
HALF = ("arms.last6.frozen_depth=6", "arms.last6_gate.frozen_depth=6", "arms.last6_gate.gate=true")
GROUPS = {
    "transplanted": Group("transplanted", "", None),
    "longer": Group("transplanted", "4 times the steps", QUERIES, ("train.steps=1200",)),
    "random": Group("random", "random tubes"),
}
ABLATIONS = {
    "matched": Group("matched", "matched tubes"),
    "with_images": Group("transplanted", "with images", QUERIES, IMAGES, cache="with_images"),
    "crops": Group("transplanted", "random crops", QUERIES, CROPS, cache="crops"),
    "half": Group("transplanted", "", ("last6", "last6_gate"), HALF),
    "aligned": Group("aligned", "aligned tubes", QUERIES),
    "cosine": Group("cosine", "cosine positions", QUERIES),
    "of_films": Group("of_films", "films alone", QUERIES, NO_SCENES),
    "one_tube": Group("one_tube", "films, one tube", QUERIES, NO_SCENES),
    "folded": Group("folded", "films, tubes folded in time", QUERIES, NO_SCENES),
    "narrow": Group("narrow", "films, width 160", QUERIES, NO_SCENES),
}


def title(group: str, name: str) -> str:
    """The name of a row on the page: an arm's with its group's, a small model's, or a reading's."""
    if group == "small":
        return DONORS[name].title
    groups = GROUPS | ABLATIONS
    return f"{name}, {groups[group].title}" if group in groups and groups[group].title else name
