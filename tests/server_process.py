"""Server processes, to be talked to over real sockets, stopped and killed."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import httpx
import pytest

from fake_server import serve
from s3_servers import free_port
from servers import KEY

#: multiprocessing looks after other processes where it starts one: two threads would each take the code of one's end.
_turn = threading.Lock()


@dataclass
class ServerProcess:
    process: ForkServerProcess
    url: str
    errors: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; a signal that ended it is a negative number."""
        with _turn:
            return self.process.exitcode

    def client(self, **options: object) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"API-KEY": KEY}, timeout=30, **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        self._await_end(10)

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send(signal.SIGCONT)

    def stop(self) -> int:
        self._send(signal.SIGTERM)
        return self._await_end(30)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.exit_code is None:
            self.kill()

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.pid, number)

    def _await_end(self, seconds: float) -> int:
        wait([self.process.sentinel], seconds)
        code = self.exit_code
        if code is None:
            raise TimeoutError(f"the server at {self.url} has not ended")
        return code


@cache
def _forks() -> ForkServerContext:
    """Servers are forked from a process that has imported what they need: that takes longer than all of their start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fake_server"])
    with pytest.MonkeyPatch.context() as patch:
        # it is started without this process's path
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        ensure_running()
    return context


def start_server(folder: Path, step_seconds: float = 0.0, **settings: str) -> ServerProcess:
    """A server that is ready. `settings` are environment variables without their prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHNELL_")}
    given = {"data_dir": str(folder), "port": str(port), "bootstrap_key": KEY, "log_level": "warning"} | settings
    environment |= {f"SCHNELL_{name.upper()}": value for name, value in given.items()}
    errors = folder / f"stderr-{port}.txt"
    errors.touch()
    with _turn:
        process = _forks().Process(target=serve, args=(environment, step_seconds, errors), daemon=True)
        process.start()
    server = ServerProcess(process, f"http://127.0.0.1:{port}", errors)
    _await_ready(server)
    return server


@contextmanager
def serving(folder: Path, step_seconds: float = 0.0, **settings: str) -> Iterator[ServerProcess]:
    server = start_server(folder, step_seconds, **settings)
    try:
        yield server
    finally:
        if server.exit_code is None:
            server.stop()


def _await_ready(server: ServerProcess) -> None:
    # one client: each reads every authority that the system trusts
    with httpx.Client(base_url=server.url, timeout=5) as client:
        for _ in range(2400):
            if server.exit_code is not None:
                raise RuntimeError(server.errors.read_text())
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
    raise TimeoutError(server.url)
