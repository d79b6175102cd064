"""Signed links, each of which opens one stored picture until it expires, with no other proof of who asks.

The signature is HMAC-SHA256 over path and query as they are sent, undecoded: one spelling of a link opens, no other.
"""

import hmac
import re
import secrets
from pathlib import Path
from typing import Final

from schnell.errors import ForbiddenError

FILES_PATH: Final = "/files/"
# the only form that `sign` gives: nothing may stand before, between or behind
_QUERY: Final = re.compile(rb"expires=([1-9][0-9]{0,11})&signature=([0-9a-f]{64})")


def load_link_secret(file: Path) -> str:
    """The secret in `file`; without the file, a random one of 256 bits is written there, for its owner's eyes only."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{secrets.token_hex(4)}")
        # closed to others before the secret is in it
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        try:
            # the whole file or none, as with a rename, which however would replace what another server has just made
            file.hardlink_to(draft)
        except FileExistsError:
            pass  # another server made it first: its secret counts
        finally:
            draft.unlink()
    return file.read_text().strip()


class LinkSigner:
    """Signs and checks links. `secret` signs; `older` ones still open, so that a secret can be changed."""

    def __init__(self, secret: str, *older: str) -> None:
        self._secrets = tuple(each.encode() for each in (secret, *older))

    def sign(self, path: str, expires: int) -> str:
        """`path` (ASCII, percent-encoded as it is sent) with a query that opens it until `expires`, in Unix seconds."""
        query = f"expires={expires}"
        return f"{path}?{query}&signature={_sign(self._secrets[0], path.encode(), query.encode())}"

    def check(self, raw_path: bytes, raw_query: bytes, now: float) -> int:
        """When a link expires, in Unix seconds, whose path and query came with a request at `now` (Unix seconds).

        Raises:
            ForbiddenError: they are not exactly a link that `sign` has made, or it has expired.
        """
        match = _QUERY.fullmatch(raw_query)
        if match is None:
            raise ForbiddenError("this link is not signed")
        signed = raw_query[: raw_query.index(b"&")]
        # in constant time, and with every secret: how long it takes says nothing of a right signature
        hits = [hmac.compare_digest(_sign(key, raw_path, signed).encode(), match[2]) for key in self._secrets]
        if not any(hits):
            raise ForbiddenError("this link's signature is wrong")
        # after the signature: only who holds a link of ours is told that it has expired
        if now >= int(match[1]):
            raise ForbiddenError("this link has expired; ask for the record again to get a new one")
        return int(match[1])


def _sign(secret: bytes, path: bytes, query: bytes) -> str:
    return hmac.digest(secret, path + b"?" + query, "sha256").hex()
