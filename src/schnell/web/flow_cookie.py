"""What a browser keeps while it is at an OpenID provider: sealed, for ten minutes, and good for this browser only."""

import base64
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from schnell.accounts.openid import Flow
from schnell.errors import SignInError

FLOW_COOKIE: Final = "schnell_openid"
FLOW_SECONDS: Final = 600


class FlowCookies:
    """Seals and opens the cookie, with keys of its own derived from the server's secrets; the first one seals.

    Every server that has the same secrets can finish what another began, and none has to remember anything.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        derived = (hmac.new(secret.encode(), b"schnell openid flow", sha256).digest() for secret in secrets)
        self._cipher = MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in derived])

    def seal(self, flow: Flow) -> str:
        """The cookie's text."""
        return self._cipher.encrypt(json.dumps(asdict(flow)).encode()).decode()

    def open(self, cookie: str, state: str) -> Flow:
        """The flow that this browser began.

        Raises:
            SignInError: there is none, it is older than ten minutes, or the provider answers another one: then another
                site may have sent the browser here, to sign it in as somebody else.
        """
        try:
            flow = Flow(**json.loads(self._cipher.decrypt(cookie.encode(), ttl=FLOW_SECONDS)))
        except (InvalidToken, ValueError, TypeError) as cause:
            raise SignInError("this sign-in was not begun here, or took more than ten minutes; try again") from cause
        if not hmac.compare_digest(flow.state.encode(), state.encode()):
            raise SignInError("this is not the answer to the sign-in that this browser began; try again")
        return flow
