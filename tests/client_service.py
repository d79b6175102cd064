"""The whole server as a process, with the embedded model, for the SDKs that people use."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from mini_loras import lora_bytes
from s3_servers import free_port
from servers import KEY

#: A prompt of the embedded model, at its smallest sizes, so that real pictures take well under a second.
PROMPT = "red apple"
MODEL = "black-forest-labs/flux-schnell-lora"
LORA = "test-style"


@dataclass
class Service:
    """A running server, and the key to it."""

    url: str
    key: str = KEY

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"API-KEY": self.key}, timeout=120)

    def make_key(self, *, team: dict[str, object] | None = None, **options: object) -> str:
        """A key of a new team."""
        with self.client() as client:
            made = client.post("/api/admin/teams", json={"name": f"team {uuid4().hex}"} | (team or {}))
            assert made.status_code == 201, made.text
            key = client.post(f"/api/admin/teams/{made.json()['id']}/keys", json={"name": "key"} | options)
            assert key.status_code == 201, key.text
            return str(key.json()["key"])


@contextmanager
def run_service(folder: Path, **settings: str) -> Iterator[Service]:
    """`schnell serve` on `folder`; `settings` are environment variables without their prefix."""
    found = Service(f"http://127.0.0.1:{free_port()}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHNELL_")}
    given = {
        "data_dir": str(folder),
        "port": found.url.rpartition(":")[2],
        "bootstrap_key": KEY,
        "webhook_private": "true",
        "log_level": "warning",
        # both say how a picture was asked for, so pictures that were asked for differently would differ
        "watermark": "false",
        "credentials": "false",
    } | settings
    environment |= {f"SCHNELL_{name.upper()}": value for name, value in given.items()}
    errors = folder / "stderr.txt"
    with errors.open("a") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "schnell", "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=sink
        )
    try:
        _await_ready(found, process, errors)
        yield found
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in errors.read_text()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(tmp_path_factory.mktemp("service")) as found:
        _add_lora(found)
        yield found


def _await_ready(service: Service, process: "subprocess.Popen[bytes]", errors: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError(errors.read_text())
        try:
            if httpx.get(f"{service.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(errors.read_text())


def _add_lora(service: Service) -> None:
    with service.client() as client:
        files = {"file": ("style.safetensors", lora_bytes(3))}
        added = client.post("/api/loras", files=files, data={"name": LORA})
        assert added.status_code == 201, added.text
        # its preview is drawn now: in float32, a picture that shares steps with another can differ in a last bit
        for _ in range(600):
            if client.get(f"/api/loras/{LORA}/preview").status_code == 200:
                return
            time.sleep(0.1)
        raise TimeoutError("the preview was not drawn")


@dataclass
class Delivery:
    """A webhook as it came."""

    headers: dict[str, str]
    body: str

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """An HTTP server that keeps what is posted to it; `refusals` answers that many with 503 first."""

    url: str
    deliveries: list[Delivery] = field(default_factory=list)
    refused: list[Delivery] = field(default_factory=list)
    refusals: int = 0

    def wait_for(self, count: int) -> list[Delivery]:
        for _ in range(300):
            if len(self.deliveries) >= count:
                return self.deliveries
            time.sleep(0.1)
        raise TimeoutError(f"{len(self.deliveries)} of {count} webhooks came")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            refused = found.refusals > 0
            found.refusals -= refused
            delivery = Delivery({name.lower(): value for name, value in self.headers.items()}, body)
            (found.refused if refused else found.deliveries).append(delivery)
            self.send_response(503 if refused else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with closing(_server(Handler)) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/hook"
        yield found


class _Closing(ThreadingHTTPServer):
    def close(self) -> None:
        self.shutdown()
        self.server_close()


def _server(handler: type[BaseHTTPRequestHandler]) -> _Closing:
    server = _Closing(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
