"""The tables of the paper: rows with its numbers, the recipes that stand for them, and what it claims."""

from __future__ import annotations

from collections.abc import Mapping

from reproduce.remarks import REMARKS
from reproduce.table import Claim, Row, Source, Table, chain

SMALL, SMALL_IMAGE, LARGE_IMAGE = (
    "runs/paper/main/small/model",
    "runs/paper/image/small/model",
    "runs/paper/image/large/model",
)
STAGES = {  # models that rows begin from, as recipes name them
    SMALL: Source("main"),
    SMALL_IMAGE: Source("image", ("size=small",)),
    LARGE_IMAGE: Source("image", ("size=large",)),
}
TRANSPLANTS = {f"runs/paper/{table}/adapted": (SMALL, LARGE_IMAGE) for table in ("table6", "table9")}

PORTIONS = {"full": 91.8, "last8_gate": 89.7, "last8": 86.8, "last4": 86.3, "fc": 85.6}
TI_TO_B = {"all": 81.4, "last4": 81.1, "last1": 80.8, "fc": 79.6}
POSITIONS = {"cosine": 84.5, "learned": 79.2, "cosine_no_stride": 77.7, "relative": 77.5, "none": 73.6}
SETS = {"joint": 91.5, "image_then_kinetics": 90.4, "inflated": 88.4, "patches": 87.6, "kinetics": 85.6}
TUBES = {"eight": 85.4, "four": 83.4, "two": 81.5, "one": 78.4}
FOLDS = {"x4_S": 85.4, "x4_ST": 85.3, "x4_T": 85.1, "x2_T": 84.7, "x2_S": 84.5, "baseline": 83.4}
KERNELS = {"tubevit": 84.5, "interpolated": 83.8}
VIEWS = {"4x1": 83.3, "1x3": 83.6, "4x3": 84.5, "10x10": 84.7}
LAYERS = {"zero": 84.2, "one": 80.2, "two": 78.9, "four": 75.2, "eight": 73.0}
TOKENS = ("x1", "x1_5", "x3")
SHORTER = "train.steps=600"  # where rows cost more, so that the table takes an hour
FINER = {"cube": [4, 8, 8], "long": [2, 8, 8], "wide": [4, 16, 16]}
FINEST = {"frames": [4, 8, 8], "cube": [2, 8, 8], "long": [1, 8, 8], "wide": [2, 16, 16]}
COSINE = Source("table7a", ("row=cosine",))
IMAGES = (  # as in recipes/sweeps/joint.yaml, where the head of shapes learns from images and videos
    "data.train.images={shards: runs/paper/data/images-train, "
    "heads: {shape: shape, position: position, size: size}, "
    "augment: {crop_scale: [1, 1], crop_ratio: [1, 1], flip: false}}"
)


def swept(recipe: str, rows: Mapping[str, float | None]) -> tuple[Row, ...]:
    """Rows that are arms of one recipe."""
    return tuple(Row(name, paper, Source(recipe, arm=name)) for name, paper in rows.items())


def varied(recipe: str, rows: Mapping[str, float], *changes: str) -> tuple[Row, ...]:
    """Rows that are variants of one recipe."""
    return tuple(Row(name, paper, Source(recipe, (f"row={name}", *changes))) for name, paper in rows.items())


TABLES = {
    "table6": Table(
        "Table 6: portions of the large model that train",
        swept("table6", PORTIONS),
        chain(*PORTIONS),
        "Six blocks stand for 32: `last4` trains one of them, `last8` two. Tubes are frozen except in `full`.",
        remarks=REMARKS["table6"],
    ),
    "table9": Table(
        "Table 9: from a smaller model to a larger one",
        swept("table9", TI_TO_B),
        chain(*TI_TO_B),
        "The models are those of Table 6, and so are the runs: `last4` trains two blocks of six.",
        remarks=REMARKS["table9"],
    ),
    "table7a": Table(
        "Table 7a: positions",
        varied("table7a", POSITIONS),
        tuple(Claim("cosine", other) for other in list(POSITIONS)[1:])
        + tuple(Claim(other, "none") for other in list(POSITIONS)[1:-1]),
        remarks=REMARKS["table7a"],
    ),
    "table5": Table(
        "Table 5: images and videos together",
        varied("table5", SETS),
        (*chain("joint", "image_then_kinetics", "kinetics"), Claim("joint", "patches"), Claim("joint", "inflated")),
        remarks=REMARKS["table5"],
    ),
    "table7b": Table("Table 7b: number of tubes", varied("table7b", TUBES), chain(*TUBES), remarks=REMARKS["table7b"]),
    "table7c": Table(
        "Table 7c: space-to-depth",
        varied("table7c", FOLDS),
        (*(Claim(fold, "baseline") for fold in list(FOLDS)[:-1]), Claim("x4_S", "x2_S"), Claim("x4_T", "x2_T")),
        remarks=REMARKS["table7c"],
    ),
    "table7e": Table(
        "Table 7e: one interpolated kernel", varied("table7e", KERNELS), chain(*KERNELS), remarks=REMARKS["table7e"]
    ),
    "table7d": Table(
        "Table 7d: more tokens in evaluation than in training",
        (
            Row("89 tokens", 84.5, COSINE),
            Row("129 tokens", 84.9, of="89 tokens", strides=FINER),
            Row("177 tokens", 84.6, of="89 tokens", strides=FINER | {"frames": [8, 8, 8], "long": [1, 8, 8]}),
            Row("253 tokens", 83.5, of="89 tokens", strides=FINEST),
        ),
        (*(Claim(more, "89 tokens") for more in ("129 tokens", "177 tokens")), Claim("89 tokens", "253 tokens")),
        "The same kernels at smaller strides; in the paper 559, 768, 1024 and 1536 tokens.",
        remarks=REMARKS["table7d"],
    ),
    "table7f": Table(
        "Table 7f: views",
        (Row("1x1", 82.8, COSINE), *(Row(views, paper, of="1x1", views=views) for views, paper in VIEWS.items())),
        (Claim("4x1", "1x1"), Claim("1x3", "1x1"), Claim("4x3", "1x1"), Claim("4x3", "4x1"), Claim("10x10", "4x3")),
        "The videos are square and as large as the model's pictures, so that several crops enlarge them and slide.",
        remarks=REMARKS["table7f"],
    ),
    "table8": Table(
        "Table 8: fresh blocks on top", varied("table8", LAYERS, SHORTER), chain(*LAYERS), remarks=REMARKS["table8"]
    ),
    "align": Table(
        "Not in the paper: tubes aligned with the large model's own tokens",
        (
            *swept("table6", {"last8": None, "last4": None, "fc": None}),
            *(Row(f"{arm}, aligned", None, Source("table6", arm=arm), "aligned") for arm in ("last8", "last4", "fc")),
        ),
        tuple(Claim(f"{arm}, aligned", arm, ours=True) for arm in ("last8", "last4", "fc")),
        "A linear map from the small model's image tokens to the large one's, folded into the kernels "
        "(`--match align` of `tools/transplant.py`), against folds, the paper's.",
        remarks=REMARKS["align"],
    ),
    "gate": Table(
        "Not in the paper: a gate for each channel",
        (
            *swept("table6", {"last8_gate": None, "last8": None}),
            Row("last8_gate, channels", None, Source("table6", ("arms.last8_gate.gate=channel",), "last8_gate")),
        ),
        (Claim("last8_gate, channels", "last8_gate", ours=True), Claim("last8_gate, channels", "last8", ours=True)),
        remarks=REMARKS["gate"],
    ),
    "late": Table(
        "Not in the paper: late training on images too",
        (
            Row("before", None),
            Row("videos", None, Source("table6", arm="last8")),
            Row("joint", None, Source("table6", (IMAGES,), "last8")),
        ),
        (
            Claim("before", "videos", True, "image shape, linear"),
            Claim("joint", "videos", True, "image shape, linear"),
            Claim("joint", "videos", True, "image shape"),
            Claim("videos", "joint", True),
        ),
        "Two blocks of six train on videos alone (`last8` of Table 6), or with every fourth batch of images, in as "
        "many steps: what images take, videos lose. `before` is the transplant that both begin from. Images are those "
        "of the validation split; `image shape` is the head of shapes, which also learns from videos; `linear` is a "
        "linear classifier fitted to what the last block gives of images (`tools/probe.py`).",
        images=True,
        remarks=REMARKS["late"],
    ),
    "figure4": Table(
        "Figure 4: number of tokens",
        tuple(
            Row(f"{sets} {row}", None, Source("figure4", (f"row={row}", f"sets={sets}", SHORTER)))
            for sets in ("joint", "videos")
            for row in TOKENS
        ),
        (
            *(Claim(f"{sets} x1", f"{sets} x3") for sets in ("joint", "videos")),
            *(Claim(f"joint {row}", f"videos {row}") for row in TOKENS),
        ),
        "Times the tokens of the main tubes. The paper prints a curve alone, which falls from "
        "about three times on; six times, of which there is a recipe too, takes too long for a desk.",
        remarks=REMARKS["figure4"],
    ),
}
