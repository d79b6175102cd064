"""The signing key in a data folder: one file, readable by its owner alone, whole at any moment."""

import secrets
from datetime import datetime
from pathlib import Path
from typing import Final

from schnell.errors import CredentialsError
from schnell.provenance.keys import SigningKeys, make_keys, read_keys

_FILE: Final = "keys.pem"
_FOLDER: Final = "credentials"


def keys_path(data_dir: Path) -> Path:
    """Where a data folder holds the key and its certificates."""
    return data_dir / _FOLDER / _FILE


def load_or_make_keys(data_dir: Path, name: str, moment: datetime) -> SigningKeys:
    """The keys in a data folder; without any, new ones that are called after `name`.

    Of several processes that start at once, one makes them and the others find them.

    Raises:
        CredentialsError: the file is there, but cannot be read.
    """
    found = find_keys(data_dir)
    if found is not None:
        return found
    path = keys_path(data_dir)
    draft = _write_draft(path, make_keys(name, moment))
    try:
        # a link, unlike a rename, replaces nothing that another process has made meanwhile
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return read_keys(path.read_text("ascii"))


def find_keys(data_dir: Path) -> SigningKeys | None:
    """The keys in a data folder, None where there are none. Raises CredentialsError."""
    path = keys_path(data_dir)
    try:
        return read_keys(path.read_text("ascii"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as cause:
        raise CredentialsError(f"{path} cannot be read: {cause}") from cause
    except CredentialsError as cause:
        raise CredentialsError(f"{path}: {cause.message}") from cause


def keep_keys(data_dir: Path, keys: SigningKeys) -> None:
    """Write keys in place of those that are there; whoever reads meanwhile finds the old or the new ones.

    Raises:
        CredentialsError: the folder cannot be written.
    """
    path = keys_path(data_dir)
    _write_draft(path, keys).replace(path)


def _write_draft(path: Path, keys: SigningKeys) -> Path:
    draft = path.with_suffix(f".{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # closed to others before the key is in it
        draft.touch(mode=0o600)
        draft.write_text(keys.to_pem(), "ascii")
    except OSError as cause:
        raise CredentialsError(
            f"{path} cannot be written: {cause.strerror}. Set SCHNELL_DATA_DIR, or sign no pictures "
            "(SCHNELL_CREDENTIALS=false, schnell generate --no-proof)"
        ) from cause
    return draft
