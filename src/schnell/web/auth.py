"""Authentication: an API key in any of the forms that clients send it in, or a browser session.

Routes declare what they need as a parameter, such as `caller: Generator`; FastAPI then calls `identify`.
"""

import base64
import binascii
import socket
from ipaddress import ip_address
from typing import Annotated, Any, Final

from fastapi import Depends, Request

from schnell.accounts.callers import authenticate, authenticate_session
from schnell.accounts.identity import Caller, Scope
from schnell.errors import ForbiddenError, UnauthorizedError
from schnell.web.services import services_of

#: Where an ASGI scope says that its caller was found: what is still to come of the request may take its time.
KNOWN: Final = "schnell.known"
#: The cookie of a signed-in browser. It holds a random secret of the session's own, never a key.
_COOKIE: Final = "schnell_session"
_SAFE_METHODS: Final = {"GET", "HEAD", "OPTIONS"}


def key_in(request: Request) -> str | None:
    """The API key in a request, if any.

    It may come as `API-KEY`, `x-key` or `x-api-key`, or as `Authorization: Bearer | Token | Key | Basic`, where Basic's
    password is the key.
    """
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
        UnauthorizedError: no key, one that is not valid, or a session that has ended.
        ForbiddenError: the key lacks the scope, or a session's request comes from another site.
    """
    services = services_of(request)
    if key := key_in(request):
        async with services.database.read() as connection:
            caller = await authenticate(connection, key)
    elif cookie := request.cookies.get(cookie_name(request)):
        # a browser adds the cookie to requests that other sites make; an API key only its owner can add
        if request.method not in _SAFE_METHODS:
            refuse_other_sites(request)
        async with services.database.read() as connection:
            caller = await authenticate_session(connection, cookie)
    else:
        raise UnauthorizedError("API Key is missing. Send it in the API-KEY header")
    if scope not in caller.scopes and not (scope == "admin" and caller.is_operator):
        whose = "this key lacks" if caller.key_id else "you lack"
        raise ForbiddenError(f"{whose} the scope {scope!r}; what may be done is {', '.join(caller.scopes)}")
    if caller.key_id:
        services.last_uses.note(caller.key_id)
    request.scope[KNOWN] = True
    return caller


def caller_with(scope: Scope) -> Any:
    """The FastAPI dependency of a route that only callers with `scope` may use; its value is the caller."""

    async def find(request: Request) -> Caller:
        return await identify(request, scope)

    return Depends(find)


Generator = Annotated[Caller, caller_with("generate")]
Reader = Annotated[Caller, caller_with("read")]
#: Of the caller's own team; an operator is one of every team. Routes still ask `administration.check_team`.
Administrator = Annotated[Caller, caller_with("admin")]
#: Of the server, with all its teams.
Operator = Annotated[Caller, caller_with("operator")]


def is_secure(request: Request) -> bool:
    """Whether browsers reach this server by HTTPS, so that its cookies may ask for it."""
    return services_of(request).config.public_url.startswith("https:")


def cookie_name(request: Request, name: str = _COOKIE) -> str:
    """What a session's cookie is called, or another one (`name`) that no other site may set."""
    # RFC 6265bis, 4.1.3.2: browsers take this prefix from this very host alone, so a sibling domain cannot set one.
    # They take it with `Secure` and the path `/` only: over plain http there is no such cookie
    return f"__Host-{name}" if is_secure(request) else name


def address_of(request: Request) -> str:
    """The network address that a request comes from, as rates are counted by."""
    return request.client.host if request.client else "unknown"


def _password_in(value: str) -> str | None:
    try:
        name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return password or name or None


def refuse_other_sites(request: Request) -> None:
    """Refuse what a page of another site has made the caller's browser send.

    Raises:
        ForbiddenError: the request comes from another site.
    """
    # the cookie's SameSite=Lax does not stop requests from sibling subdomains or from other ports of this host
    origin = request.headers.get("origin")
    foreign = origin is not None and origin != services_of(request).config.public_url and not _is_own(request, origin)
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"} or foreign:
        raise ForbiddenError("a session's requests must come from this server's own pages")


def _is_own(request: Request, origin: str) -> bool:
    """Whether an origin is the address that the request came to, and one that no other site can call itself.

    The Host header is whatever a client wrote there, and anybody's domain may lead to this server's number. So a name
    counts only if it is this machine's; other names are for `SCHNELL_PUBLIC_URL`.
    """
    host = (request.url.hostname or "").lower()
    if host not in {"localhost", socket.gethostname().lower()}:
        try:
            ip_address(host)
        except ValueError:
            return False
    return origin == f"{request.url.scheme}://{request.url.netloc}"
