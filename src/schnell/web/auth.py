"""Who is asking: an API key in any of the forms that clients send it in, or a browser session.

A session is a signed cookie that names a key by its id, never the key itself.
"""

import base64
import binascii
import hmac
import re
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from schnell.accounts.identity import Caller, Scope
from schnell.accounts.keys import authenticate, authenticate_id
from schnell.errors import ForbiddenError, UnauthorizedError
from schnell.web.services import services_of

COOKIE: Final = "schnell_session"
LIFETIME_SECONDS: Final = 7 * 24 * 3600
_SESSION_FORM: Final = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,12})\.([0-9a-f]{64})")


class SessionSigner:
    """Makes and reads session cookies, signed with a key derived from the server's secret."""

    def __init__(self, secret: str) -> None:
        self._key = hmac.new(secret.encode(), b"schnell session", sha256).digest()

    def make(self, key_id: str, expires: int) -> str:
        """The cookie for an API key, good until `expires` (Unix seconds)."""
        return f"{key_id}.{expires}.{self._sign(key_id, expires)}"

    def read(self, cookie: str, now: float) -> str | None:
        """The key's id, or None when the cookie is not ours or too old."""
        match = _SESSION_FORM.fullmatch(cookie)
        if match is None:
            return None
        key_id, expires, signature = match[1], int(match[2]), match[3]
        genuine = hmac.compare_digest(self._sign(key_id, expires), signature)
        return key_id if genuine and now < expires else None

    def _sign(self, key_id: str, expires: int) -> str:
        return hmac.new(self._key, f"{key_id}.{expires}".encode(), sha256).hexdigest()


_SAFE_METHODS: Final = {"GET", "HEAD", "OPTIONS"}
_key_header = APIKeyHeader(name="API-KEY", scheme_name="apiKey", auto_error=False)
_bearer = HTTPBearer(scheme_name="bearer", auto_error=False)


def key_in(request: Request) -> str | None:
    """The API key in a request: `API-KEY`, `x-key`, or `Authorization: Bearer | Token | Key | Basic` (the password)."""
    for header in ("api-key", "x-key", "x-api-key"):
        if found := request.headers.get(header, "").strip():
            return found
    scheme, _, value = request.headers.get("authorization", "").strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        return _password_in(value)
    return value or None if scheme.lower() in {"bearer", "token", "key"} else None


async def identify(request: Request, scope: Scope) -> Caller:
    """The caller, who must hold `scope`.

    Raises:
        UnauthorizedError: no key, or none that is good.
        ForbiddenError: the key lacks the scope, or a session's request comes from another site.
    """
    services = services_of(request)
    if key := key_in(request):
        async with services.database.read() as connection:
            caller = await authenticate(connection, key)
    elif cookie := request.cookies.get(COOKIE):
        key_id = services.sessions.read(cookie, time.time())
        if key_id is None:
            raise UnauthorizedError("The session has ended. Log in again")
        _refuse_other_sites(request)
        async with services.database.read() as connection:
            caller = await authenticate_id(connection, key_id)
    else:
        raise UnauthorizedError("API Key is missing. Send it in the API-KEY header")
    if scope not in caller.scopes:
        raise ForbiddenError(f"this key lacks the scope {scope!r}; it has {', '.join(caller.scopes)}")
    return caller


def caller_with(scope: Scope) -> Any:
    """A dependency that gives the caller, who must hold `scope`."""

    async def find(request: Request) -> Caller:
        return await identify(request, scope)

    finder: Callable[[Request], Awaitable[Caller]] = find
    return Depends(finder)


Generator = Annotated[Caller, caller_with("generate")]
Reader = Annotated[Caller, caller_with("read")]
Administrator = Annotated[Caller, caller_with("admin")]
#: For the OpenAPI document: the two forms of a key that we recommend.
SECURITY: Final = [Security(_key_header), Security(_bearer)]


def _password_in(value: str) -> str | None:
    try:
        name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return password or name or None


def _refuse_other_sites(request: Request) -> None:
    if request.method in _SAFE_METHODS:
        return
    origin = request.headers.get("origin")
    own = {services_of(request).config.public_url, f"{request.url.scheme}://{request.url.netloc}"}
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or (origin and origin not in own):
        raise ForbiddenError("a session's requests must come from this server's own pages")
