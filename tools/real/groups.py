"""The groups of rows: which small model's tubes go into the ViT, in which way, and which arms train on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CONTROLS = ("attentive", "last3")  # the arms of every group but the first


@dataclass(frozen=True)
class Donor:
    """A small model.

    Args:
        title: on the page.
        changes: to the recipe of the small model.
    """

    title: str
    changes: Sequence[str] = ()


DONORS = {
    "small": Donor("small model"),
    "small_videos": Donor("small model, videos alone", ("data.train.images=null", "train.steps=900")),  # as many videos
    "small_one_tube": Donor("small model, one tube", ("model.tubes.long=null",)),
    "small_folded": Donor(  # as many tokens
        "small model, folded in time", ("model.tubes.short.stride=[4,16,16]", "model.tubes.short.fold=[2,1,1]")
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
    "cosine": Tubes(options={"positions": "cosine"}),
    "of_videos": Tubes("small_videos"),
    "one_tube": Tubes("small_one_tube"),
    "folded": Tubes("small_folded"),
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
GROUPS = {
    "transplanted": Group("transplanted", "", None),
    "matched": Group("matched", "matched tubes"),
    "random": Group("random", "random tubes"),
}
ABLATIONS = {
    "longer": Group("transplanted", "1,200 steps", ("attentive", "attentive_taps"), ("train.steps=1200",)),
    "with_images": Group("transplanted", "with images", changes=IMAGES, cache="with_images"),
    "aligned": Group("aligned", "aligned tubes"),
    "cosine": Group("cosine", "cosine positions"),
    "of_videos": Group("of_videos", "tubes of videos alone"),
    "one_tube": Group("one_tube", "one tube"),
    "folded": Group("folded", "tubes folded in time"),
}


def title(group: str, name: str) -> str:
    """The name of a row on the page: an arm's with its group's, a small model's, or a reading's."""
    if group == "small":
        return DONORS[name].title
    groups = GROUPS | ABLATIONS
    return f"{name}, {groups[group].title}" if group in groups and groups[group].title else name
