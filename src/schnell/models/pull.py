"""Fetching a model from the Hugging Face hub: resumable, and clear about what to do when refused."""

import os
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from schnell.errors import ModelDownloadError
from schnell.models.catalogue import CatalogueEntry

#: The diffusers layout alone: FLUX.1's repository also holds the transformer in one file, 24 GB a second time.
_WANTED: Final = [
    "model_index.json",
    "schnell.json",
    "scheduler/*",
    "tokenizer/*",
    "tokenizer_2/*",
    "text_encoder/*",
    "text_encoder_2/*",
    "transformer/*",
    "vae/*",
]


def pull_model(entry: CatalogueEntry, *, endpoint: str | None = None, token: str | None = None) -> Path:
    """Download `entry` into the models folder and give its path. Files that are complete are not fetched again.

    `endpoint` and `token` default to `$HF_ENDPOINT` and `$HF_TOKEN`.

    Raises:
        ModelDownloadError: refused (naming the page to accept the licence on), not found, or cut off.
    """
    if entry.repository is None:
        return entry.path
    # until it is whole the folder has another name, so that nobody opens half a model
    target = entry.path if entry.is_here else entry.path.with_name(entry.path.name + ".partial")
    endpoint = endpoint or os.environ.get("HF_ENDPOINT")
    try:
        snapshot_download(
            entry.repository,
            local_dir=target,
            allow_patterns=_WANTED,
            endpoint=endpoint,
            token=token or os.environ.get("HF_TOKEN"),
        )
    except GatedRepoError as error:
        raise ModelDownloadError(_refusal(entry.repository)) from error
    except RepositoryNotFoundError as error:
        raise ModelDownloadError(f"the hub knows no {entry.repository}, or HF_TOKEN may not see it") from error
    # without a network the hub's client raises LocalEntryNotFoundError: it then looks for files that are here already
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelDownloadError(
            f"{entry.repository} could not be fetched ({error}); run the same command to resume"
        ) from error
    return _put_in_place(target, entry.path)


def _put_in_place(partial: Path, path: Path) -> Path:
    if not (partial / "model_index.json").is_file():
        raise ModelDownloadError(f"{partial} has no model_index.json: the repository is not a diffusers model")
    return partial if partial == path else partial.rename(path)


def _refusal(repository: str) -> str:
    return (
        f"the hub refuses {repository}: accept its terms at https://huggingface.co/{repository} with your account, "
        "make a token at https://huggingface.co/settings/tokens, and set HF_TOKEN to it"
    )
