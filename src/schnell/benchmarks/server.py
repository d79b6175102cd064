"""What the server adds to the engine: the time of a request to `schnell serve`, less the stages that the engine timed.

What is left is everything else: socket, authentication, credits, records, waits between threads and steps, the stored
file, the response.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from schnell.benchmarks.result import BenchmarkResult
from schnell.errors import BenchmarkError

KEY: Final = "a-key-for-measuring-only"
_WARM_UP: Final = 5
_TIMEOUT_SECONDS: Final = 120.0
#: Finds the length of a response's body, and matches to the end of its head.
_LENGTH: Final = re.compile(rb"content-length: ([0-9]+)\r\n(?:.*?\r\n)?\r\n", re.IGNORECASE | re.DOTALL)
_TO_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class RequestTime:
    """Milliseconds of one request over a socket, and of the engine's stages in it."""

    whole: float
    stages: float

    @property
    def around(self) -> float:
        """Milliseconds that are not the engine's."""
        return self.whole - self.stages


def server_overhead() -> BenchmarkResult:
    """Milliseconds that the server adds to the engine, for one client with one request after another."""
    times = measure_server()
    around = [each.around for each in times]
    return BenchmarkResult(
        ours=statistics.median(around),
        unit="ms",
        ours_is="median of POST /api/features, 1 MP, less its engine stages (text, steps, …, safety check, encoding)",
        details={
            "p90_ms": statistics.quantiles(around, n=10)[-1],
            "request_ms": statistics.median(each.whole for each in times),
            "requests": len(times),
        },
    )


def measure_server(requests: int = 60) -> Sequence[RequestTime]:
    """The times of generations sent one after another to a new server: embedded model, SQLite, local files."""
    with (
        tempfile.TemporaryDirectory(prefix="schnell-bench-") as folder,
        server_process(Path(folder)) as address,
        _connect(address) as client,
    ):
        return [_time_one(client, seed) for seed in range(requests + _WARM_UP)][_WARM_UP:]


@contextmanager
def server_process(folder: Path, **settings: str) -> Iterator[str]:
    """Run `schnell serve` with its data in `folder` for the block; yields its `host:port`. `KEY` is its API key.

    Raises:
        BenchmarkError: it did not start.
    """
    given = {"bootstrap_key": KEY, "log_level": "warning"} | settings
    # settings of this process would change what is measured
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHNELL_")}
    with subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "schnell", "serve", "--port", "0", "--data-dir", str(folder)],
        env=environment | {f"SCHNELL_{name.upper()}": value for name, value in given.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            greeting = process.stdout.readline() if process.stdout else ""
            if " at http://" not in greeting:
                _, reason = process.communicate(timeout=60)
                raise BenchmarkError(f"schnell serve did not start: {reason.strip()[-500:]}")
            yield greeting.rpartition("http://")[2].strip()
        finally:
            process.terminate()


@contextmanager
def server_with_loras(folder: Path, files: Sequence[Path], clients: int, **settings: str) -> Iterator[httpx.Client]:
    """A client, of so many connections, of a new server that has these LoRAs, each by its file's name.

    Raises:
        BenchmarkError: the server did not start, or refused a file.
    """
    with (
        server_process(folder, **settings) as address,
        httpx.Client(
            base_url=f"http://{address}",
            headers={"API-KEY": KEY},
            limits=httpx.Limits(max_connections=clients),
            timeout=_TIMEOUT_SECONDS,
        ) as client,
    ):
        for file in files:
            post(client, "/api/loras", data={"name": file.stem}, files={"file": (file.name, file.read_bytes())})
        yield client


def post(client: httpx.Client, path: str, **content: Any) -> None:
    """Send `content`, as httpx takes it.

    Raises:
        BenchmarkError: the server refused.
    """
    answer = client.post(path, **content)
    if answer.is_error:
        raise BenchmarkError(f"{path} answered {answer.status_code}: {answer.text[:500]}")


def request_body(**prompt: Any) -> dict[str, Any]:
    """The body of `POST /api/features` with these fields in `promptObject`."""
    return {"type": "IMAGE_GENERATOR", "model": "black-forest-labs/flux-schnell-lora", "promptObject": prompt}


def _connect(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    client = socket.create_connection((host, int(port)))
    # without Nagle's delay, as the server: it would be measured, not the server
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def _time_one(client: socket.socket, seed: int) -> RequestTime:
    body = json.dumps(request_body(prompt="a red apple on a blue background", seed=seed))
    head = f"POST /api/features HTTP/1.1\r\nHost: bench\r\nAPI-KEY: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    request = (head + body).encode()
    started = time.perf_counter()
    answer = _exchange(client, request)
    whole = (time.perf_counter() - started) * _TO_MS
    stages = json.loads(answer)["aiRecord"]["aiRecordDetail"]["responseObject"]["timings"]
    return RequestTime(whole, sum(stages.values()) * _TO_MS)


def _exchange(client: socket.socket, request: bytes) -> bytes:
    """The response's body. By hand, as Python's own HTTP client adds a third of a millisecond to the server's time."""
    client.sendall(request)
    received = b""
    while (found := _LENGTH.search(received)) is None or len(received) < found.end() + int(found[1]):
        part = client.recv(65_536)
        if not part:
            raise BenchmarkError("the server closed the connection")
        received += part
    return received[found.end() :]
