"""Signed messages to addresses that callers name, never to private ones unless the operator allows it.

Signed as https://www.standardwebhooks.com describes: HMAC-SHA256 over id, time and body, with a secret for each team.
"""

import asyncio
import base64
import hmac
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, partial
from hashlib import sha256
from ipaddress import ip_address
from typing import Any, Final, Literal
from uuid import uuid4

import httpx
from sqlalchemy import delete, select, update
from standardwebhooks import Webhook

from schnell.clock import Backoff, now, retry
from schnell.database.session import Database
from schnell.database.tables import new_id, webhooks
from schnell.errors import DatabaseUnavailableError, SchnellError
from schnell.outbound.addresses import AddressPolicy, CheckedTransport


@dataclass(frozen=True, slots=True)
class Subscription:
    """An address that gets a message when a record has ended. `tries` were made so far; the next is due at `due_at`."""

    id: str
    record_id: str
    team_id: str
    url: str
    tries: int
    due_at: datetime


class Subscriptions:
    """The subscriptions that one server delivers, in SQL."""

    def __init__(self, database: Database, instance: str) -> None:
        self._database = database
        self._instance = instance

    async def add(self, record_id: str, team_id: str, url: str) -> Subscription:
        """Keep a new one."""
        added = Subscription(new_id(), record_id, team_id, url, tries=0, due_at=now())
        values = {name: getattr(added, name) for name in Subscription.__slots__}
        async with self._database.write() as connection:
            await connection.execute(webhooks.insert().values(values | {"instance": self._instance}))
        return added

    async def pending(self) -> list[Subscription]:
        """Every one that is neither delivered nor given up, the longest due first."""
        query = select(webhooks).where(webhooks.c.instance == self._instance).order_by(webhooks.c.due_at)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [Subscription(**{name: getattr(row, name) for name in Subscription.__slots__}) for row in rows]

    async def postpone(self, subscription: Subscription, tries: int, due_at: datetime) -> None:
        """Note that it has been tried, and when to try again."""
        statement = update(webhooks).where(webhooks.c.id == subscription.id)
        async with self._database.write() as connection:
            await connection.execute(statement.values(tries=tries, due_at=due_at))

    async def end(self, subscription: Subscription) -> None:
        """Delivered, or given up."""
        async with self._database.write() as connection:
            await connection.execute(delete(webhooks).where(webhooks.c.id == subscription.id))


_log = logging.getLogger(__name__)
#: For one request, until its answer has begun.
_SECONDS: Final = 10.0
_LONGEST_URL: Final = 2_000
_GONE: Final = 410
_DATABASE_BACKOFF: Final = Backoff()
#: Seconds before each further try.
_DELAYS: Final = (1, 4, 16, 60, 300, 1200)
Outcome = Literal["arrived", "failed", "refused"]


class WebhookSender:
    """Delivers webhooks beside the requests that they report on. Those that are subscriptions are tried several times,
    also after a restart.
    """

    def __init__(  # noqa: PLR0913 - it is built in one place, from one part each
        self,
        secret: str,
        subscriptions: Subscriptions,
        *,
        private: bool = False,
        delays: Sequence[float] = _DELAYS,
        transport: httpx.AsyncBaseTransport | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.subscriptions = subscriptions
        self._secret = hmac.new(secret.encode(), b"schnell webhooks", sha256).digest()
        self._private = private
        self._delays = tuple(delays)
        self._transport = transport
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    def secret_of(self, team_id: str) -> str:
        """What a team's webhooks are signed with: `whsec_` and base64."""
        key = hmac.new(self._secret, team_id.encode(), sha256).digest()
        return f"whsec_{base64.b64encode(key).decode()}"

    def refusal_of(self, address: str) -> str | None:
        """What is wrong with an address, as far as it shows without asking for the host's numbers."""
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, ValueError):
            return "is not an address that can be read"
        if not url.host or url.userinfo or len(address) > _LONGEST_URL or url.scheme not in {"http", "https"}:
            return "must be an https address without a user name or password"
        if self._private:
            return None
        if url.scheme != "https":
            return "must be an https address"
        return _private_problem(url.host)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` beside the request that asks for it. Its failure is logged and counted, and ends nothing else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    async def tell(self, url: str, team_id: str, body: str) -> bool:
        """Deliver one message, once; whether it arrived."""
        return await self._send(url, team_id, f"msg_{uuid4().hex}", body) == "arrived"

    async def deliver(self, subscription: Subscription, body: str) -> bool:
        """Deliver the message of a subscription, with further tries; whether it arrived.

        A server that stops meanwhile tries once, and leaves the rest for its next start.
        """
        message_id = f"msg_{subscription.id}"
        await self._rest((subscription.due_at - now()).total_seconds())
        for tries in range(subscription.tries + 1, len(self._delays) + 2):
            if self._closing.is_set() and tries > subscription.tries + 1:
                return False
            outcome = await self._send(subscription.url, subscription.team_id, message_id, body)
            if outcome != "failed" or tries > len(self._delays):
                await self._persist(lambda: self.subscriptions.end(subscription))
                return outcome == "arrived"
            delay = self._delays[tries - 1]
            due_at = now() + timedelta(seconds=delay)
            await self._persist(partial(self.subscriptions.postpone, subscription, tries, due_at))
            await self._rest(delay)
        await self._persist(lambda: self.subscriptions.end(subscription))
        return False

    async def close(self, seconds: float = 5.0) -> None:
        """Let deliveries at hand end for `seconds`, then drop them."""
        self._closing.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _persist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write what became of a delivery, tried again while the database is away.

        Without the note, the next start would deliver a message that has arrived once more.
        """

        def go_on(error: Exception) -> None:
            if self._closing.is_set() or not isinstance(error, DatabaseUnavailableError):
                raise error

        await retry(write, go_on, _DATABASE_BACKOFF)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), max(0.0, seconds))

    async def _send(self, url: str, team_id: str, message_id: str, body: str) -> Outcome:
        try:
            status = await self._post(url, self._sign(team_id, message_id, body), body)
        except SchnellError as error:
            _log.warning("a webhook is not sent: %s", error.message)
            return "refused"
        # anyio raises AttributeError where the other side hangs up while the connection is being made
        except (httpx.HTTPError, AttributeError) as error:
            _log.info("a webhook did not arrive: %s", type(error).__name__)
            return "failed"
        if 200 <= status < 300:
            return "arrived"
        _log.warning("a webhook was answered with %d", status)
        return "refused" if status == _GONE else "failed"

    def _sign(self, team_id: str, message_id: str, body: str) -> dict[str, str]:
        moment = now()
        return {
            "Content-Type": "application/json",
            "User-Agent": "schnell",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": Webhook(self.secret_of(team_id)).sign(message_id, moment, body),
        }

    async def _post(self, url: str, headers: dict[str, str], body: str) -> int:
        inner = self._transport or httpx.AsyncHTTPTransport(verify=_tls())
        transport = inner if self._private else CheckedTransport(AddressPolicy(), inner)
        async with (
            httpx.AsyncClient(transport=transport, trust_env=False, timeout=_SECONDS) as client,
            client.stream("POST", url, content=body.encode(), headers=headers) as response,
        ):
            return response.status_code

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a webhook failed", exc_info=error)
            self._on_failure()


@cache
def _tls() -> ssl.SSLContext:
    """Made once: to read the system's certificates takes some tens of milliseconds."""
    return httpx.create_ssl_context()


def _private_problem(host: str) -> str | None:
    try:
        AddressPolicy().check_address(host, ip_address(host.strip("[]")))
    except ValueError:
        return None
    except SchnellError as error:
        return error.message
    return None
