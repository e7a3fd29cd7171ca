"""Finds, downloads and uploads files of weights and models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from torch.hub import download_url_to_file, get_dir

from scaleup.common.errors import UserError, first_line
from scaleup.common.tensors import INDEX_ENDING, read_index, split

TIMM = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
HUB, LOCAL = "hf-hub:", "local-dir:"
PATIENCE = 5  # seconds to wait for an answer of a hub
INSTEAD = "give a local file or directory with --weights, or --random-init"


def is_path(weights: str) -> bool:
    """Whether ``weights`` is a path on this machine, and not the name of something to download."""
    return not weights.startswith((HUB, "timm:", "open_clip:")) and weights not in ("pretrained", "meta")


def files_of(name: str) -> tuple[str, ...]:
    """Names of weights files, first those of the backbone's library."""
    return (*OPEN_CLIP, *TIMM) if name.startswith("open_clip:") else (*TIMM, *OPEN_CLIP)


def find(place: str, names: Sequence[str]) -> Path:
    """The first file of ``names`` in ``place``: ``hf-hub:owner/name``, ``local-dir:PATH``, a directory, or a file
    itself.

    After a colon, ``place`` may name one of the models in its file; the result names it too.

    Raises:
        UserError: there is no such file, or the hub cannot be reached.
    """
    if place.startswith(HUB):
        repo, _, choice = place.removeprefix(HUB).partition(":")
        return _of(_fetch(repo, names), choice or None)
    path, model = split(place.removeprefix(LOCAL))
    if path.is_dir():
        files = [path / name for name in names if (path / name).is_file()]
        if not files:
            ours = "; export a model of scaleup with tools/export.py --to full" if TIMM[0] in names else ""
            raise UserError(f"{path} has none of {', '.join(names)}{ours}")
        return _of(files[0], model)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    return _of(path, model)


def _of(path: Path, model: str | None) -> Path:
    """The absolute path, with the model after a colon. Links are not resolved, because names and folders matter."""
    return path.absolute().with_name(f"{path.name}:{model}") if model is not None else path.absolute()


def _fetch(repo: str, names: Sequence[str]) -> Path:
    """A file of a hub repository (owner/name[@revision]), from the cache if it is there."""
    repo, _, revision = repo.partition("@")
    for name in names:
        try:
            return _download(repo, name, revision=revision or None, local_files_only=True)
        except LocalEntryNotFoundError:
            continue
        except ValueError as error:
            raise UserError(f"{repo!r} is not a hub id; allowed is owner/name") from error
    for name in names:
        try:  # a single request; the hub's own download would try again for half a minute
            get_hf_file_metadata(hf_hub_url(repo, name, revision=revision or None), timeout=PATIENCE)
            return _download(repo, name, revision=revision or None)
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # networks and caches raise many kinds of errors
            raise _unreachable(f"{HUB}{repo} ({name})", error) from error
    raise UserError(f"{HUB}{repo} has none of {', '.join(names)}; {INSTEAD}")


def _download(repo: str, name: str, **how: Any) -> Path:
    """Download a file of a hub repository and, if it is an index, the files that it names."""
    path = Path(hf_hub_download(repo, name, **how))
    for part in set(read_index(path).values()) if name.endswith(INDEX_ENDING) else ():
        hf_hub_download(repo, part.name, **how)
    return path


def fetch_url(url: str) -> Path:
    """A file of the web, in torch's cache."""
    path = Path(get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        urlopen(Request(url, method="HEAD"), timeout=PATIENCE).close()  # the download itself has no timeout
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(url, os.fspath(path), progress=False)
    except Exception as error:
        raise _unreachable(url, error) from error
    return path


def _unreachable(what: str, error: Exception) -> UserError:
    reason = first_line(error).rstrip(".")
    return UserError(f"the file {what} is not in the cache and could not be fetched ({reason}); {INSTEAD}")


def upload(directory: Path, repo_id: str, private: bool = False, message: str = "scaleup") -> str:
    """Upload a model directory in one commit.

    Args:
        repo_id: ``owner/name``; it is created if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub cannot be reached, or refuses the name or the token.
    """
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message=message))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(f"{repo_id!r} was not uploaded: {first_line(error)}") from error
