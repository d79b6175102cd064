"""`/mcp`: the tools for agents over HTTP (MCP's streamable HTTP transport), with the same keys as everything else.

A call of a tool is a request of the native API in this process, with the key that came with it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
from fastapi import FastAPI
from mcp.server.mcpserver import Context
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from schnell.agents import build_tools
from schnell.errors import UnauthorizedError
from schnell.web.auth import identify, key_in

_PATH: Final = "/mcp"
_HEADERS: Final = ("authorization", "api-key", "x-key", "x-api-key")
#: Pictures take seconds on a GPU and minutes on a laptop; the queue has limits of its own.
_SECONDS: Final = 600.0


class AgentTools:
    """The route, and the block in which it answers."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        tools = build_tools(self._connect, app.version)
        # without sessions, any of several servers answers any request; a key is asked for, which no web page of
        # another name that leads here could send
        tools.streamable_http_app(
            streamable_http_path=_PATH,
            stateless_http=True,
            json_response=True,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        self._sessions = tools.session_manager

    def install(self) -> None:
        """Add the route to the app."""
        self._app.router.routes.append(
            Route(_PATH, endpoint=_Endpoint(self._answer), methods=["GET", "POST", "DELETE"], include_in_schema=False)
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests while the block runs."""
        # a task of its own: what the SDK opens must be closed by the task that opened it, and a lifespan may be entered
        # and left by two
        started, ending = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(self._hold(started, ending))
        await started.wait()
        try:
            yield
        finally:
            ending.set()
            await task

    async def _hold(self, started: asyncio.Event, ending: asyncio.Event) -> None:
        async with self._sessions.run():
            started.set()
            await ending.wait()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if key_in(request) is None:
            raise UnauthorizedError("API Key is missing. Send it as Authorization: Bearer, or in the API-KEY header")
        await identify(request, "read")
        await self._sessions.handle_request(scope, receive, send)

    @asynccontextmanager
    async def _connect(self, context: Context[Any, Any]) -> AsyncIterator[httpx.AsyncClient]:
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
