"""uvicorn around the app, for `schnell serve` alone: other commands start without the web framework."""

import asyncio
import resource
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import typer
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schnell.bootstrap import build_app, without_collecting
from schnell.cli.bounded_http import bounded_http
from schnell.errors import SchnellError, StartError
from schnell.generations import Runner
from schnell.settings import Settings
from schnell.side_processes import SideProcesses
from schnell.web import pages
from schnell.web.services import services_of_app

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run_server(settings: Settings, runner: Runner, beside: SideProcesses, listener: socket.socket) -> None:
    """Serve requests from `listener` until SIGTERM or SIGINT, then finish what runs.

    The processes `beside` are what the runner pauses, if it does.

    Raises:
        SchnellError: why the server could not start, or stop in order.
        StartError: it could not start for another reason, of which the log has the trace.
    """
    with without_collecting():
        app = build_app(settings, runner, beside)
        pages.prepare(app)
    _allow_many_connections()
    lifespan = _ExpectedFailures(app)
    config = uvicorn.Config(
        lifespan,
        http=bounded_http(),
        log_config=None,
        access_log=False,
        server_header=False,
        # whole seconds, rounded up; generations that no open request waits for are drained by the app's lifespan
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
    server = _Server(
        config,
        greet=lambda: _greet(settings, app.state.first_key),
        # the time to drain runs from the signal, not from the end of the last open request
        refuse=services_of_app(app).admission.close,
    )
    with suppress(SystemExit):  # uvicorn's, with an exit code of its own
        server.run(sockets=[listener])
    if lifespan.failure is not None:
        raise lifespan.failure
    if not server.started:
        raise StartError("the server could not start; the lines above say why")


def _allow_many_connections() -> None:
    """As many open files as the system lets a process have: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to this address (port 0: any free one); uvicorn starts to listen on it.

    Raises:
        StartError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's delay (40 ms an answer) off only where the protocol is named
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as cause:
        listener.close()
        raise StartError(f"cannot listen on {host}:{port}: {cause.strerror}; choose another --port") from cause
    return listener


class _ExpectedFailures:
    """The app, which keeps a `SchnellError` of its lifespan as `failure`, where Starlette would log its trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: SchnellError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failures: list[Message] = []

        async def hold_failures(message: Message) -> None:
            if message["type"].endswith(".failed"):
                # the error itself follows, and says whether somebody expected it
                failures.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, hold_failures)
        except SchnellError as error:
            self.failure = error
            for message in failures:
                await send({"type": message["type"]})
            raise
        except BaseException:
            for message in failures:
                await send(message)
            raise


class _Server(uvicorn.Server):
    """uvicorn that greets once it is ready, and that a signal ends with exit code 0.

    uvicorn's own `capture_signals` raises the signal again after the shutdown, so that the process dies of it.
    """

    def __init__(self, config: uvicorn.Config, *, greet: Callable[[], None], refuse: Callable[[], None]) -> None:
        super().__init__(config)
        self._greet = greet
        self._refuse = refuse

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._greet()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._refuse()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _SIGNALS:
                with suppress(ValueError):
                    loop.remove_signal_handler(number)


def _greet(settings: Settings, first_key: str | None) -> None:
    url = settings.base_url
    typer.echo(f"schnell serves {settings.model} at {url}")
    if first_key:
        typer.echo(f"\nYour API key, shown this once:\n\n  {first_key}\n")
        typer.echo(f"Open the playground, signed in:\n\n  {url}/sign-in#key={first_key}\n")
    key = first_key or "$SCHNELL_API_KEY"
    typer.echo(f"""Draw a picture:

curl --location '{url}/api/features' \\
--header "API-KEY: {key}" \\
--header 'Content-Type: application/json' \\
--data '{{
"type": "IMAGE_GENERATOR",
"model": "black-forest-labs/flux-schnell-lora",
"promptObject": {{
"prompt": "a red apple on a blue background",
"aspect_ratio": "1:1",
"num_inference_steps": 4,
"go_fast": true,
"megapixels": "1"
}}
}}'
""")
