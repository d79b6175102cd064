"""The headers of answers: which model drew, how much of a key's rate is left, and what a route adds."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from starlette.requests import HTTPConnection

EXTRA_HEADERS: Final = "schnell.headers"


def add_headers(connection: HTTPConnection, headers: Mapping[str, str]) -> None:
    """Headers for the answer to this request, however it turns out."""
    connection.scope.setdefault(EXTRA_HEADERS, {}).update(headers)


#: The response header that says which model really draws, whatever a request called it.
MODEL_HEADER: Final = "X-Schnell-Model"


def header_text(text: str) -> str:
    """A text as a header can hold it: in ASCII."""
    return text.encode("ascii", "replace").decode()


class RateHeaders(NamedTuple):
    """The names of a dialect's three headers, and the unit that its reset time is written with."""

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
    """The names that a dialect's clients look for; the native ones where it has none of its own."""
    return _BY_DIALECT.get(dialect, _NATIVE)
