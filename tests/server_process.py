"""Server processes, to be talked to over real sockets, stopped and killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from s3_servers import free_port
from servers import KEY

TESTS = Path(__file__).parent


@dataclass
class ServerProcess:
    process: "subprocess.Popen[str]"
    url: str
    errors: Path

    def client(self, **options: object) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"API-KEY": KEY}, timeout=30, **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def start_server(folder: Path, step_seconds: float = 0.0, **settings: str) -> ServerProcess:
    """A server that is ready. `settings` are environment variables without their prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHNELL_")}
    given = {"data_dir": str(folder), "port": str(port), "bootstrap_key": KEY, "log_level": "warning"} | settings
    environment |= {f"SCHNELL_{name.upper()}": value for name, value in given.items()}
    errors = folder / f"stderr-{port}.txt"
    with errors.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "fake_server.py"), str(step_seconds)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
        )
    server = ServerProcess(process, f"http://127.0.0.1:{port}", errors)
    _await_ready(server)
    return server


@contextmanager
def serving(folder: Path, step_seconds: float = 0.0, **settings: str) -> Iterator[ServerProcess]:
    server = start_server(folder, step_seconds, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
        if server.process.stdout:
            server.process.stdout.close()


def _await_ready(server: ServerProcess) -> None:
    for _ in range(600):
        if server.process.poll() is not None:
            raise RuntimeError(server.errors.read_text())
        try:
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError(server.url)
