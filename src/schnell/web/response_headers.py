"""Headers that answers carry beside their bodies: the model that drew, its cost, and what is left of a key's rate.

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
#: What a generation costs in credits: reserved while it runs, charged once it is done.
COST_HEADER: Final = "X-Schnell-Cost"
#: The same in money, under the name that LiteLLM counts a key's spending by.
LITELLM_COST_HEADER: Final = "x-litellm-response-cost"


def add_headers(connection: HTTPConnection, headers: Mapping[str, str]) -> None:
    """Add headers to the answer of this request, also when that answer is an error."""
    connection.scope.setdefault(EXTRA_HEADERS, {}).update(headers)


def add_cost(connection: HTTPConnection, credits_: int, credit_value: float) -> None:
    """Say what a generation costs: in credits, and in money at `credit_value` for each of them."""
    add_headers(connection, {COST_HEADER: str(credits_), LITELLM_COST_HEADER: f"{credits_ * credit_value:.10g}"})


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


#: The headers that a script of another origin may read (`Access-Control-Expose-Headers`).
EXPOSED: Final = (
    *("X-Request-Id", "Retry-After", "X-Should-Retry", "Location", MODEL_HEADER, COST_HEADER, LITELLM_COST_HEADER),
    *("X-Schnell-Seed", "X-Schnell-Loras", "X-Schnell-Warnings"),
    *(name for names in (_NATIVE, *_BY_DIALECT.values()) for name in names[:3]),
)
