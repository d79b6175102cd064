"""`schnell mcp`: the tools for agents on standard input and output, drawn by a running server or by this process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from schnell.cli.output import say
from schnell.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

    from schnell.settings import Settings

_SECONDS: Final = 600.0
_URL: Final = "SCHNELL_API_URL"
_KEY: Final = "SCHNELL_API_KEY"


def mcp_command(
    url: Annotated[
        str | None, typer.Option(envvar=_URL, help="A running server's address; without it, this process draws.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar=_KEY, help="An API key of that server.")] = None,
) -> None:
    """Serve the Model Context Protocol on standard input and output, for agents."""
    from schnell.bootstrap import read_settings
    from schnell.cli.serve import configure_logs

    settings = read_settings()
    configure_logs(settings.log_level)
    if url is None:
        _draw_here(settings)
        return
    key = key or settings.bootstrap_key
    if not key:
        raise ConfigurationError(f"the server at {url} asks for an API key: give --key, or set {_KEY}")
    asyncio.run(_serve(_client(base_url=url.rstrip("/"), headers={"API-KEY": key})))


def _draw_here(settings: "Settings") -> None:
    """Answer with a server inside this process, which has the data folder to itself and listens on no port."""
    import httpx

    from schnell.assets.links import load_link_secret
    from schnell.bootstrap import build_app, build_server_runner, check_settings, hold_data
    from schnell.side_processes import SideProcesses

    check_settings(settings)
    with _explaining(), hold_data(settings):
        # one key for every such process: the first start makes it, and the database holds its digest
        key = settings.bootstrap_key or load_link_secret(settings.data_dir / "mcp-key")
        settings = settings.model_copy(update={"bootstrap_key": key})
        say(f"loading {settings.model} …")
        beside = SideProcesses()
        app = build_app(settings, build_server_runner(settings, say, beside), beside)

        async def serve() -> None:
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app, raise_app_exceptions=False)
                await _serve(_client(transport=transport, base_url="http://schnell", headers={"API-KEY": key}))

        asyncio.run(serve())


@contextmanager
def _explaining() -> "Iterator[None]":
    try:
        yield
    except ConfigurationError as error:
        raise type(error)(f"{error.message}. With --url, schnell mcp asks a running server") from error


def _client(**options: Any) -> "httpx.AsyncClient":
    import httpx

    return httpx.AsyncClient(timeout=_SECONDS, **options)


async def _serve(client: "httpx.AsyncClient") -> None:
    from schnell.agents import build_tools
    from schnell.provenance.receipt import engine_version

    @asynccontextmanager
    async def lend(_: object) -> "AsyncIterator[httpx.AsyncClient]":
        # one client for all calls, which is not closed after the first
        yield client

    async with client:
        await build_tools(lend, engine_version()).run_stdio_async()
