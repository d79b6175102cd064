"""uvicorn's HTTP protocol with bounds on what comes before anyone is known: heads, and requests that do not end.

uvicorn on httptools has none: it keeps every header until the last one has come, and waits for it for ever. See
docs/decisions/0049.
"""

import asyncio
from functools import partial
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from schnell.web.auth import KNOWN

#: Of a request line with its headers; the app itself refuses more than half of that with an answer in its dialect.
_MOST_HEAD_BYTES: Final = 65_536
#: How long a request of somebody unknown may take to arrive, in seconds.
_SECONDS: Final = 15.0
#: How many such requests may be on their way at once: the oldest goes when another comes. One that is sent in one go
#: is never among them.
_MOST_UNFINISHED: Final = 128


class Unfinished:
    """The connections of a server on which a request has begun and not ended, the oldest first."""

    def __init__(self, most: int = _MOST_UNFINISHED, seconds: float = _SECONDS) -> None:
        self._most = most
        self._seconds = seconds
        self._since: dict[BoundedHttp, float] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def enter(self, connection: "BoundedHttp") -> None:
        """A request begins, or a connection that has sent nothing yet."""
        loop = connection.loop
        self._since.setdefault(connection, loop.time())
        if len(self._since) > self._most:
            self._drop_oldest()
        if self._sweep is None:
            self._sweep = loop.call_later(self._seconds / 8, self._drop_late, loop)

    def leave(self, connection: "BoundedHttp") -> None:
        """The request is here in whole, or its connection is gone."""
        self._since.pop(connection, None)

    def _drop_oldest(self) -> None:
        oldest = next((each for each in self._since if not each.is_known), None)
        if oldest is not None:
            self.leave(oldest)
            oldest.refuse(b"408 Request Timeout", b"too many requests have begun and not ended")

    def _drop_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = None
        before = loop.time() - self._seconds
        for connection, since in [*self._since.items()]:
            if since < before and not connection.is_known:
                self.leave(connection)
                connection.refuse(b"408 Request Timeout", b"the request did not end in time")
        if self._since:
            self._sweep = loop.call_later(self._seconds / 8, self._drop_late, loop)


class BoundedHttp(HttpToolsProtocol):
    """One connection. `unfinished` are those of its server."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        unfinished: Unfinished,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._unfinished = unfinished
        self._in_head = True
        self._head_bytes = 0

    @property
    def is_known(self) -> bool:
        """Whether the request on its way comes from somebody whose key was checked."""
        return self.scope is not None and KNOWN in self.scope

    def refuse(self, status: bytes, message: bytes) -> None:
        """Answer what can still be answered, and close."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + head % len(message) + message)
        self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio: a client has connected."""
        super().connection_made(transport)
        self._unfinished.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._unfinished.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio: some bytes have come."""
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MOST_HEAD_BYTES:
            self._unfinished.leave(self)
            self.refuse(b"431 Request Header Fields Too Large", b"the headers must have at most 32768 bytes")

    def on_message_begin(self) -> None:
        """httptools: a request begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._unfinished.enter(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header is complete."""
        # what comes behind a chunked body are headers, too: nobody reads them, and they have no end
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """httptools: the head of the request is complete."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """httptools: the request is here in whole."""
        super().on_message_complete()
        self._unfinished.leave(self)


def bounded_http() -> type[asyncio.Protocol]:
    """The protocol of one server, for `uvicorn.Config(http=…)`."""
    return cast("type[asyncio.Protocol]", partial(BoundedHttp, unfinished=Unfinished()))
