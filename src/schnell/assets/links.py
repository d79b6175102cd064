"""Links that open one stored picture for a while: HMAC-SHA256 over the raw path and query, as sent."""

import hmac
import re
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from schnell.errors import ForbiddenError

FILES_PATH: Final = "/files/"
_QUERY: Final = re.compile(rb"expires=([1-9][0-9]{0,11})&signature=([0-9a-f]{64})")


def load_link_secret(file: Path) -> str:
    """The secret in `file`, made at random when there is none (readable by its owner only)."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{secrets.token_hex(4)}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        try:
            file.hardlink_to(draft)
        except FileExistsError:
            pass  # another server made it first: its secret counts
        finally:
            draft.unlink()
    return file.read_text().strip()


class LinkSigner:
    """Signs and checks links. The first secret signs; every one of them opens, so that secrets can be changed."""

    def __init__(self, secret: str, *older: str) -> None:
        self._secrets = tuple(each.encode() for each in (secret, *older))

    def sign(self, path: str, expires: int) -> str:
        """`path` (ASCII, as it is sent) with a query that opens it until `expires`, in Unix seconds."""
        query = f"expires={expires}"
        return f"{path}?{query}&signature={_sign(self._secrets[0], path.encode(), query.encode())}"

    def check(self, raw_path: bytes, raw_query: bytes, now: float) -> int:
        """Let a request through whose path and query are exactly a link of ours, and say when it expires.

        Raises:
            ForbiddenError: they are not, or the link has expired.
        """
        match = _QUERY.fullmatch(raw_query)
        if match is None:
            raise ForbiddenError("this link is not signed")
        signed = raw_query[: raw_query.index(b"&")]
        # every secret is tried, so that the time taken says nothing
        hits = [hmac.compare_digest(_sign(key, raw_path, signed).encode(), match[2]) for key in self._secrets]
        if not any(hits):
            raise ForbiddenError("this link's signature is wrong")
        if now >= int(match[1]):
            raise ForbiddenError("this link has expired; ask for the record again to get a new one")
        return int(match[1])


def _sign(secret: bytes, path: bytes, query: bytes) -> str:
    return hmac.new(secret, path + b"?" + query, sha256).hexdigest()


def signer_from(secrets_in_order: Sequence[str], file: Path) -> LinkSigner:
    """The signer with the operator's secrets, or with the one kept in `file`."""
    return LinkSigner(*secrets_in_order) if secrets_in_order else LinkSigner(load_link_secret(file))
