"""Browser sessions: a signed cookie that holds an API key's id, never the key itself."""

import hmac
import re
from hashlib import sha256
from typing import Final

COOKIE: Final = "schnell_session"
LIFETIME_SECONDS: Final = 7 * 24 * 3600
_FORM: Final = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,12})\.([0-9a-f]{64})")


class SessionSigner:
    """Makes and reads session cookies, `KEY_ID.EXPIRES.HMAC`, signed with a key derived from the server's secret."""

    def __init__(self, secret: str) -> None:
        # a key of its own: what is signed for another purpose with the same secret never passes as a session
        self._key = hmac.new(secret.encode(), b"schnell session", sha256).digest()

    def make(self, key_id: str, expires: int) -> str:
        """The cookie for the API key with this id, valid until `expires` (Unix seconds)."""
        return f"{key_id}.{expires}.{self._sign(key_id, expires)}"

    def read(self, cookie: str, now: float) -> str | None:
        """The key's id; None for a cookie that was not made here, or that expired before `now` (Unix seconds)."""
        match = _FORM.fullmatch(cookie)
        if match is None:
            return None
        key_id, expires, signature = match[1], int(match[2]), match[3]
        genuine = hmac.compare_digest(self._sign(key_id, expires), signature)
        return key_id if genuine and now < expires else None

    def _sign(self, key_id: str, expires: int) -> str:
        return hmac.new(self._key, f"{key_id}.{expires}".encode(), sha256).hexdigest()
