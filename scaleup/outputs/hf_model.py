"""A model as the library transformers loads it, for ``pipeline("video-classification", ...)``.

This file is the code of the directories that ``--to transformers`` writes: their own files only name its classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BatchFeature
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
from transformers.video_processing_utils import BaseVideoProcessor

from scaleup.common.files import write_json, write_text
from scaleup.config.schema import Input
from scaleup.data.stream import clips
from scaleup.model.build import load
from scaleup.model.objective import meaning
from scaleup.model.tokenizer import natural_clip
from scaleup.model.tubevit import TubeViT

INSIDE = "scaleup"  # the model directory within the directory of transformers
PROBLEMS = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification"}
PROBLEMS |= {"l2": "regression", "l1": "regression"}  # of transformers
BATCH = 8  # clips of one pass, as of tools/predict.py


class ScaleupConfig(PreTrainedConfig):
    """Classes, frames, and the head that is read."""

    model_type = "scaleup"

    def __init__(self, head: str | None = None, num_frames: int = 0, **kwargs: Any) -> None:
        self.head, self.num_frames = head, num_frames
        super().__init__(**kwargs)


class ScaleupForVideoClassification(PreTrainedModel):
    """One head of a :class:`scaleup.model.tubevit.TubeViT`."""

    config_class = ScaleupConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ScaleupConfig, model: TubeViT) -> None:
        super().__init__(config)
        self.model = model

    @classmethod
    def from_pretrained(cls, directory: str | Path, *_: Any, config: Any = None, **options: Any) -> Any:
        """The model in ``directory/scaleup``; of ``options`` those that say where on the hub it is are used."""
        place = Path(directory)
        if not place.is_dir():
            hub = {key: options[key] for key in ("revision", "cache_dir", "token") if options.get(key)}
            place = Path(snapshot_download(str(directory), allow_patterns=f"{INSIDE}/*", **hub))
        config = config or ScaleupConfig.from_pretrained(place)
        return cls(config, load(place / INSIDE)).eval()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        """uint8 pixels -> logits (B, C). ``pixel_values``: clips (B, 3, T, h, w), images (B, 3, h, w), or the clips of
        whole videos (B, N, 3, T, h, w), whose probabilities are averaged: then logits are those of the mean."""
        if pixel_values.dim() < 6:
            return ImageClassifierOutput(logits=self.logits(pixel_values))
        return ImageClassifierOutput(logits=torch.stack([self._of_video(video) for video in pixel_values]))

    def logits(self, pixels: Tensor) -> Tensor:
        return self.model(self.model.preprocess(pixels), self.config.head)

    def _of_video(self, video: Tensor) -> Tensor:
        """Logits (C,) that mean what its clips mean on average: probabilities, or a number."""
        loss = self.model.config.loss(self.model.head_name(self.config.head))
        mean = torch.cat([meaning(self.logits(batch), loss) for batch in video.split(BATCH)]).mean(0)
        return {"softmax": torch.log, "sigmoid": torch.logit}.get(loss, torch.clone)(mean)


class ScaleupVideoProcessor(BaseVideoProcessor):
    """Reads a video as ``tools/predict.py`` does: all its clips, one after the other, upright, cropped, as uint8."""

    def __init__(self, frames: int = 0, fps: float = 0.0, input_size: list[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.frames, self.fps, self.input_size = frames, fps, input_size

    def __call__(self, videos: str | list[str], num_frames: int | None = None, **_: Any) -> BatchFeature:
        """``pixel_values`` uint8 (B, N, 3, T, h, w) of paths or addresses; all must have the same number N of clips.

        Raises:
            ValueError: ``num_frames`` is not what the model reads, or a path is none.
            BadSample: a video cannot be decoded.
        """
        if num_frames not in (None, self.frames):
            raise ValueError(f"num_frames {num_frames}: this model reads clips of {self.frames} frames")
        paths = [videos] if isinstance(videos, str) else list(videos)
        if not all(isinstance(path, str) for path in paths):
            raise ValueError("videos must be paths or addresses, because their times are read too")
        input = Input(self.frames, list(self.input_size or []), self.fps)
        read = [torch.stack([pixels for _, pixels in clips(path, input, self.frames / self.fps)]) for path in paths]
        return BatchFeature({"pixel_values": torch.stack(read)})


MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES["scaleup"] = ScaleupForVideoClassification.__name__  # else a warning
CODE = '''"""The classes of this directory, for ``trust_remote_code=True``. They need the package scaleup."""

from scaleup.outputs.hf_model import ScaleupConfig, ScaleupForVideoClassification, ScaleupVideoProcessor
'''
FILE = "modeling_scaleup"


def write(model: TubeViT, directory: Path, head: str | None) -> dict[str, float]:
    """Write what ``transformers.pipeline("video-classification", DIRECTORY, trust_remote_code=True)`` loads.

    Returns:
        The largest difference of the logits that it gives for an image and a video from the model's.

    Raises:
        UserError: the model has several heads and none is named, or another is.
    """
    head, input = model.head_name(head), model.config.input
    model.save_pretrained(directory / INSIDE, "full", overwrite=True)
    classes = model.config.heads[head]
    config = {
        "model_type": ScaleupConfig.model_type,
        "architectures": [ScaleupForVideoClassification.__name__],
        "auto_map": {
            "AutoConfig": f"{FILE}.{ScaleupConfig.__name__}",
            "AutoModelForVideoClassification": f"{FILE}.{ScaleupForVideoClassification.__name__}",
        },
        "problem_type": PROBLEMS[model.config.loss(head)],
        "head": head,
        "num_frames": input.frames,
        "id2label": dict(enumerate(classes)),
        "label2id": {name: number for number, name in enumerate(classes)},
    }
    processor = {
        "auto_map": {"AutoVideoProcessor": f"{FILE}.{ScaleupVideoProcessor.__name__}"},
        **{"frames": input.frames, "fps": input.fps, "input_size": list(input.size)},
    }
    write_json(directory / "config.json", config)
    write_json(directory / "video_preprocessor_config.json", processor)
    write_text(directory / f"{FILE}.py", CODE)
    loaded = ScaleupForVideoClassification.from_pretrained(directory)
    video = (natural_clip(input.frames, model.preprocess.size) * 255).round().byte()
    pixels = {"image": video[:, :, 0], "video": video}
    with torch.inference_mode():
        pairs = {name: (loaded(x).logits, model(model.preprocess(x), head)) for name, x in pixels.items()}
    return {name: (one - other).abs().max().item() for name, (one, other) in pairs.items()}
