"""Chooses one model of a checkpoint. Trainers save weights, their running average (EMA) and a teacher in one file.

Names of tensors are paths: ``state_dict_ema/module.norm.weight`` is the tensor ``module.norm.weight`` of the mapping
``state_dict_ema``. The place of a model is the common beginning of the names of its tensors.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from scaleup.common.errors import UserError, nearest
from scaleup.common.text import join_words
from scaleup.common.timing import is_first_rank

Place = tuple[str, ...]

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # of a module anywhere in a model
PREFIXES = {"module", "model", "net", "network", "backbone", "student", "teacher", "ema", "model_ema", "ema_model"}
MAPPINGS = PREFIXES | {  # names under which trainers save tensors
    *("state_dict", "state_dict_ema", "model_state_dict", "ema_state_dict", "model_ema_state_dict", "encoder"),
    *("target_encoder", "params", "params_ema", "weights", "model_weights", "network_state_dict", "net_state_dict"),
}
PATCHES = re.compile(  # end of the name of a ViT's patch embedding or class token; the model's place is before it
    r"""(?:^|[./])(?:
    (?:(?:tokenizer[.])?stem[.]|visual[.]trunk[.])?patch_embed[.]proj(?:ection)?[.]weight
    |(?:(?:tokenizer[.])?stem[.]|visual[.])?class_embedding
    |(?:(?:vision_model|vit|deit|dinov2|dinov2_with_registers|dinov3_vit|beit|ijepa)[.])?embeddings[.]
        (?:patch_embeddings[.](?:projection[.])?weight|patch_embedding[.]weight|class_embedding)
    |preprocessor[.]patchifier[.]proj[.]weight
    |beit3[.]vision_embed[.]proj[.]weight
    |radio_model[.]model[.]patch_generator[.]embedder[.]weight
    )$""",
    re.VERBOSE,
)
NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|loss|criterion|metric|averaged|step|epoch|^opt$", re.IGNORECASE)
EMA = re.compile(r"(^|_)ema(_|$)")
TIMM = ("state_dict_ema", "model_ema", "state_dict")  # in the order of timm's own loader
LATER = {"target": 1, "target_encoder": 1, "momentum_encoder": 1, "student": 2, "predictor": 3, "decoder": 3}
REST = "rest"  # label of a model at the top level, if the file has other models too


class Chosen(NamedTuple):
    """``names``: the model's tensors by their own names -> their names in the file; ``said``: what else the file holds,
    in words, or nothing."""

    names: dict[str, str]
    said: str


def choose(file: Path, sizes: Mapping[str, int], model: str | None) -> Chosen:
    """The tensors of one model of a file.

    Args:
        sizes: the number of elements of each tensor.
        model: the user's name for the model; None to choose the best one.

    Raises:
        UserError: there is no such model, or several that cannot be told apart.
    """
    names = _places(file, sizes)
    models = _models(names)
    place = _preferred(file, models) if model is None else _named(file, names, models, model)
    deeper = [other for other in models if len(other) > len(place) and _in(other, place)]
    own = {
        ".".join(name[len(place) :]): there
        for name, there in names.items()
        if _in(name, place) and not any(_in(name, other) for other in deeper)
    }
    beside = [name for name in names if not any(_in(name, other) for other in (*models, place))]
    notes = [_taking(models, place) if model is None else ""]
    notes += [_left([name for name in beside if sizes[names[name]] > 1], place)]
    return Chosen(own, "; ".join(filter(None, notes)))


def _places(file: Path, names: Iterable[str]) -> dict[Place, str]:
    """Names as places, without the wrappers of single modules."""
    places: dict[Place, str] = {}
    for name in names:
        *words, last = re.split("[./]", name)
        words = [word for word in words if word not in WRAPPERS]
        words = [word for i, word in enumerate(words) if word != "module" or i == 0 or not words[i - 1].isdigit()]
        if (place := (*words, last)) in places:
            raise UserError(
                f"{file} has two tensors with one name, {places[place]} and {name}; save only one model in a file"
            )
        places[place] = name
    return places


def _in(name: Place, place: Place) -> bool:
    return name[: len(place)] == place


def _models(names: Mapping[Place, str]) -> list[Place]:
    """The places of models: before patch embeddings or, if there are none, inside the wrappers of trainers."""
    dotted = (".".join(name) for name in names)
    begins = [name[: match.start()] for name in dotted if (match := PATCHES.search(name))]
    if begins:
        return [tuple(begin.split(".")) if begin else () for begin in dict.fromkeys(begins)]
    places: list[Place] = [()]
    for place in places:  # grows
        places += [(*place, word) for word in _wraps(names, place)]
    return [place for place in places if not _wraps(names, place)]


def _wraps(names: Mapping[Place, str], place: Place) -> list[str]:
    """The words after a place that are wrappers of trainers."""
    after = {
        name[len(place)]: there for name, there in names.items() if _in(name, place) and len(name) > len(place) + 1
    }
    return [word for word, there in after.items() if word in PREFIXES or (word in MAPPINGS and f"{word}/" in there)]


def _preferred(file: Path, models: Collection[Place]) -> Place:
    ranks = {place: _rank(place) for place in models}
    best = [place for place in models if ranks[place] == min(ranks.values())]
    if len(best) > 1:
        count, labels = "two" if len(best) == 2 else len(best), _labels(best)
        raise UserError(
            f"{file} has tensors of {count} models, {join_words(labels)}; name one of them: {file}:{labels[0]}"
        )
    return best[0]


def _rank(place: Place) -> tuple[int, int]:
    """The model with the lowest rank is chosen: an average before a teacher, before weights, before a student."""
    kinds = [word in place for word in TIMM[:2]]
    kinds += [any(EMA.search(word) for word in place), "teacher" in place, TIMM[2] in place, True]
    return max((LATER.get(word, 0) for word in place), default=0), kinds.index(True)


def _named(file: Path, names: Mapping[Place, str], models: Collection[Place], model: str) -> Place:
    """The place of the model that the user names."""
    words = tuple(re.split("[./]", model))
    matches = [place for place in models if words in [place[i : i + len(words)] for i in range(len(place))]]
    if model == REST and () in models:
        return ()
    if not matches and any(_in(name, words) and len(name) > len(words) for name in names):
        inner = {name[len(words) :]: there for name, there in names.items() if _in(name, words) and name != words}
        matches = [(*words, *place) for place in _models(inner)]
    if not matches:
        labels = _labels(models)
        raise UserError(f"{file} has no model {model!r}; allowed are {join_words(labels)}{nearest(model, labels)}")
    return _preferred(file, matches)


def _labels(models: Collection[Place]) -> list[str]:
    """The shortest labels that differ for all places."""
    starts = [[place[:n] for n in range(1, len(place) + 1)] for place in models]
    alone = [
        next((s for s in of if sum(s in other for other in starts) == 1), of[-1] if of else (REST,)) for of in starts
    ]
    return [".".join(words) for words in alone]


def _taking(models: Collection[Place], place: Place) -> str:
    labels = dict(zip(models, _labels(models), strict=True))
    if len(models) == 1:
        return f"holds {labels[place]}, which is taken" if _rank(place)[1] < 4 or _rank(place)[0] else ""
    other = next(label for start, label in labels.items() if start != place)
    why = ", as timm does" if {*TIMM, "encoder"} & {*place} else ""
    return f"holds {join_words(labels.values())}; taking {labels[place]}{why}; choose with FILE:{other}"


def _left(beside: Iterable[Place], place: Place) -> str:
    """A clause that names the tensors of the file that belong to no model."""
    tops = (name[: next((n for n, word in enumerate(name, 1) if place[n - 1 : n] != (word,)), None)] for name in beside)
    words = dict.fromkeys(".".join(top) for top in tops if not NO_WEIGHTS.search(".".join(top)))
    return f"{join_words(words)} left out" if words else ""


def report_choice(file: Path, *notes: str) -> None:
    """Print on stderr, in one line, what else a file has besides the chosen model."""
    if is_first_rank() and any(notes):
        print(f"{file.name}: {'; '.join(filter(None, notes))}", file=sys.stderr)
