"""Fetching a model from the Hugging Face hub: room is checked first, what broke off goes on, what came is verified."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

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
#: Left free on the disk: for the database, pictures and whatever else lives there.
_SPARE_BYTES: Final = 1 << 30


def pull_model(
    entry: CatalogueEntry,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    without_transformer: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Download `entry` into the models folder, check what arrived, and give the folder's path.

    Files that are complete are not fetched again. `endpoint` and `token` default to `$HF_ENDPOINT` and `$HF_TOKEN`.
    `without_transformer` fetches what single-file transformers lack, into the folder that a whole pull goes on with.
    `say` is told what it takes, and what is being done.

    Raises:
        ModelDownloadError: refused (naming the page to accept the licence on), not found, cut off, damaged on the way,
            or larger than the room on the disk.
    """
    if entry.repository is None:
        return entry.path
    # until it is whole the folder has another name, so that nobody opens half a model
    target = entry.path if entry.is_here else partial_folder(entry.path)
    endpoint, token = endpoint or os.environ.get("HF_ENDPOINT"), token or os.environ.get("HF_TOKEN")
    unwanted = ["transformer/*", "model_index.json"] if without_transformer and not entry.is_here else None
    options: dict[str, Any] = {
        "local_dir": target,
        "allow_patterns": _WANTED,
        "ignore_patterns": unwanted,
        "endpoint": endpoint,
        "token": token,
    }
    try:
        # where the hub does not answer or refuses, the download itself says why
        with suppress(DryRunError):
            _check_space(snapshot_download(entry.repository, dry_run=True, **options), target, say)
        snapshot_download(entry.repository, **options)
        say("checking every file against the hub's hashes")
        _verify(HfApi(endpoint, token), entry.repository, target)
    except GatedRepoError as error:
        raise ModelDownloadError(_refusal(entry.repository)) from error
    except RepositoryNotFoundError as error:
        raise ModelDownloadError(f"the hub knows no {entry.repository}, or HF_TOKEN may not see it") from error
    # without a network the hub's client raises LocalEntryNotFoundError: it then looks for files that are here already
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.TransportError) as error:
        raise ModelDownloadError(
            f"{entry.repository} could not be fetched ({error}); run the same command to resume"
        ) from error
    return target if unwanted else _put_in_place(target, entry.path)


def partial_folder(path: Path) -> Path:
    """The folder that a model lies in until it is pulled in whole."""
    return path.with_name(path.name + ".partial")


def _check_space(files: Sequence[Any], target: Path, say: Callable[[str], None]) -> None:
    """Refuse what the disk has no room for, before a byte of it is fetched."""
    wanted = sum(file.file_size or 0 for file in files if file.will_download)
    if not wanted:
        return
    # a file that was cut off before is not fetched from its start again, so this counts some bytes twice
    folder = next(each for each in (target, *target.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if wanted + _SPARE_BYTES > free:
        raise ModelDownloadError(
            f"{target} needs {wanted / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free there: make room, or set "
            "SCHNELL_MODELS_DIR to a folder on a larger disk"
        )
    say(f"{wanted / 1e9:.1f} GB to fetch into {target}, where {free / 1e9:.1f} GB are free")


def _verify(hub: HfApi, repository: str, target: Path) -> None:
    """Compare every file's hash with the hub's; what differs is removed, so that the next pull fetches it again."""
    wrong = hub.verify_repo_checksums(repository, local_dir=target).mismatches
    for file in wrong:
        (target / file["path"]).unlink(missing_ok=True)
    if wrong:
        names = ", ".join(file["path"] for file in wrong)
        raise ModelDownloadError(f"{names} arrived damaged and was removed: run the same command to fetch it again")


def _put_in_place(partial: Path, path: Path) -> Path:
    if not (partial / "model_index.json").is_file():
        raise ModelDownloadError(f"{partial} has no model_index.json: the repository is not a diffusers model")
    if partial == path:
        return path
    partial.rename(path)
    # models that were added meanwhile may name parts in the folder that this one was
    partial.symlink_to(path, target_is_directory=True)
    return path


def _refusal(repository: str) -> str:
    return (
        f"the hub refuses {repository}: accept its terms at https://huggingface.co/{repository} with your account, "
        "make a token at https://huggingface.co/settings/tokens, and set HF_TOKEN to it"
    )
