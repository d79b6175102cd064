"""Browser sessions: a signed cookie that holds an API key's id, never the key itself."""

import hmac
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

COOKIE: Final = "schnell_session"
LIFETIME_SECONDS: Final = 7 * 24 * 3600
_FORM: Final = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Session:
    """What a cookie says: a session's own id, the key that it was made with, and its end in Unix seconds."""

    id: str
    key_id: str
    expires: int


class SessionSigner:
    """Makes and reads session cookies, `KEY_ID.EXPIRES.ID.HMAC`, signed with a key derived from the server's secret."""

    def __init__(self, secret: str) -> None:
        # a key of its own: what is signed for another purpose with the same secret never passes as a session
        self._key = hmac.new(secret.encode(), b"schnell session", sha256).digest()

    def make(self, key_id: str, expires: int) -> str:
        """The cookie of a new session for the API key with this id, valid until `expires` (Unix seconds)."""
        signed = f"{key_id}.{expires}.{secrets.token_hex(16)}"
        return f"{signed}.{self._sign(signed)}"

    def read(self, cookie: str, now: float) -> Session | None:
        """The session; None for a cookie that was not made here, or that expired before `now` (Unix seconds)."""
        match = _FORM.fullmatch(cookie)
        if match is None:
            return None
        genuine = hmac.compare_digest(self._sign(cookie.rpartition(".")[0]), match[4])
        session = Session(match[3], match[1], int(match[2]))
        return session if genuine and now < session.expires else None

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), sha256).hexdigest()
