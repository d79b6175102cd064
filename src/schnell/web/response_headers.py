"""Headers that answers carry beside their bodies: the model that drew, and what is left of a key's rate.

Routes put their headers into the request's ASGI scope with `add_headers`; the middleware writes them into whatever
answer the request gets, an error included.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from starlette.requests import HTTPConnection

#: Where `add_headers` keeps its headers in an ASGI scope.
EXTRA_HEADERS: Final = "schnell.headers"
#: The response header that names the model that drew, whatever model the request named.
MODEL_HEADER: Final = "X-Schnell-Model"


def add_headers(connection: HTTPConnection, headers: Mapping[str, str]) -> None:
    """Add headers to the answer of this request, also when that answer is an error."""
    connection.scope.setdefault(EXTRA_HEADERS, {}).update(headers)


def header_text(text: str) -> str:
    """`text` in ASCII, with `?` for every other character: Starlette would write Latin-1, and fail beyond it."""
    return text.encode("ascii", "replace").decode()


class RateHeaders(NamedTuple):
    """The names of a dialect's three rate limit headers, and the unit that its reset time is written with."""

    limit: str = "X-RateLimit-Limit"
    remaining: str = "X-RateLimit-Remaining"
    reset: str = "X-RateLimit-Reset"
    unit: str = ""

    def write(self, limit: int, remaining: int, reset_after: int) -> dict[str, str]:
        """The headers for `remaining` of `limit` requests, and `reset_after` seconds until the next."""
        return {
            self.limit: str(limit),
            self.remaining: str(remaining),
            self.reset: f"{reset_after}{self.unit}",
        }


_NATIVE: Final = RateHeaders()
_BY_DIALECT: Final = {
    "openai": RateHeaders(
        "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "s"
    ),
    "replicate": RateHeaders("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
}


def rate_headers(dialect: str) -> RateHeaders:
    """The rate limit headers that a dialect's clients read; the native ones where it has none of its own."""
    return _BY_DIALECT.get(dialect, _NATIVE)
