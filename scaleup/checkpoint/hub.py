"""A model on the Hugging Face hub: a repository with the files of a model directory, which ``scaleup.load`` reads."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from scaleup.errors import UserError


def upload(directory: Path, repo_id: str, private: bool = False, message: str = "scaleup") -> str:
    """Upload a model directory in one commit.

    Args:
        repo_id: ``owner/name``; made where it is not there yet.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub is not reached, or refuses: the name, the token.
    """
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message=message))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{repo_id!r} is not uploaded: {reason}") from error
