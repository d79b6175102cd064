"""`/mcp`: the tools for agents over HTTP (MCP's streamable HTTP transport), with the same keys as everything else.

A call of a tool is a request of the native API in this process, with the key that came with it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx
from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from schnell.errors import UnauthorizedError
from schnell.web.auth import identify, key_in

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

_PATH: Final = "/mcp"
_HEADERS: Final = ("authorization", "api-key", "x-key", "x-api-key")
#: Pictures take seconds on a GPU and minutes on a laptop; the queue has limits of its own.
_SECONDS: Final = 600.0


class AgentTools:
    """The route, and the block in which it answers. The protocol is loaded with the first request that speaks it."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._loading = asyncio.Lock()
        self._ending = asyncio.Event()
        self._sessions: StreamableHTTPSessionManager | None = None
        self._task: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Add the route to the app."""
        self._app.router.routes.append(
            Route(_PATH, endpoint=_Endpoint(self._answer), methods=["GET", "POST", "DELETE"], include_in_schema=False)
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests while the block runs."""
        try:
            yield
        finally:
            self._ending.set()
            if self._task is not None:
                await self._task

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if key_in(request) is None:
            raise UnauthorizedError("API Key is missing. Send it as Authorization: Bearer, or in the API-KEY header")
        await identify(request, "read")
        sessions = await self._start()
        await sessions.handle_request(scope, receive, send)

    async def _start(self) -> "StreamableHTTPSessionManager":
        async with self._loading:
            if self._sessions is None:
                # the SDK takes longer to import than the rest of the web side: no start of a server waits for it, and
                # no other request while it is imported
                sessions = await asyncio.to_thread(self._build)
                started = asyncio.Event()
                # a task of its own: what the SDK opens must be closed by the task that opened it
                self._task = asyncio.create_task(self._hold(sessions, started))
                await started.wait()
                self._sessions = sessions
            return self._sessions

    def _build(self) -> "StreamableHTTPSessionManager":
        from mcp.server.transport_security import TransportSecuritySettings

        from schnell.agents import build_tools

        tools = build_tools(self._connect, self._app.version)
        # without sessions, any of several servers answers any request; a key is asked for, which no web page of
        # another name that leads here could send
        tools.streamable_http_app(
            streamable_http_path=_PATH,
            stateless_http=True,
            json_response=True,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        return tools.session_manager

    async def _hold(self, sessions: "StreamableHTTPSessionManager", started: asyncio.Event) -> None:
        async with sessions.run():
            started.set()
            await self._ending.wait()

    @asynccontextmanager
    async def _connect(self, context: "Context[Any, Any]") -> AsyncIterator[httpx.AsyncClient]:
        sent = context.headers or {}
        headers = {name: sent[name] for name in _HEADERS if name in sent}
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", headers=headers, timeout=_SECONDS
        ) as client:
            yield client


class _Endpoint:
    """An ASGI app as an endpoint: Starlette takes functions for endpoints of another form."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
