"""How long the server takes around the engine: the whole app with a runner that draws nothing."""

import asyncio
import json
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import uvicorn

from schnell.benchmarks.result import BenchmarkResult
from schnell.bootstrap import build_app, read_settings
from schnell.spec import GeneratedImage, GenerationSpec, Job, JobOutcome, Outlook, ProgressListener, RunnerSnapshot

_KEY: Final = "a-key-for-measuring-only"
#: About what a megapixel of WebP weighs.
_PICTURE: Final = bytes(70_000)
_BODY: Final = json.dumps(
    {
        "type": "IMAGE_GENERATOR",
        "model": "black-forest-labs/flux-schnell-lora",
        "promptObject": {"prompt": "a red apple on a blue background", "seed": 7},
    }
)


class IdleRunner:
    """A runner that answers at once with the same bytes, so that what is measured is everything else."""

    async def run(self, job: Job, _on_progress: ProgressListener) -> JobOutcome:
        """Nothing is drawn."""
        size = job.spec.size
        image = GeneratedImage(0, job.seed, _PICTURE, "image/webp", size.width, size.height, {})
        return JobOutcome((image,))

    def outlook(self, _spec: GenerationSpec, _team_id: str) -> Outlook:
        """Never anything to wait for."""
        return Outlook(0, 0.0)

    def snapshot(self) -> RunnerSnapshot:
        """Nothing going on."""
        return RunnerSnapshot()

    async def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Milliseconds of one request from one client, over a real socket."""

    median: float
    p90: float
    requests: int


def server_overhead() -> BenchmarkResult:
    """Milliseconds of the server around the engine: one client, one request after another."""
    times = measure_server()
    return BenchmarkResult(
        ours=times.median,
        unit="ms",
        ours_is="median of POST /api/features with a runner that draws nothing, SQLite, local files",
        details={"p90_ms": times.p90, "requests": times.requests},
    )


def measure_server(requests: int = 300) -> ServerTimes:
    """Send `requests` generations, one after another, to a server of its own on a fresh SQLite database."""
    with tempfile.TemporaryDirectory(prefix="schnell-bench-") as folder:
        return asyncio.run(_measure(Path(folder), requests))


async def _measure(folder: Path, requests: int) -> ServerTimes:
    # asyncio switches Nagle's delay (40 ms an answer) off only where the protocol is named
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = read_settings(data_dir=folder, port=port, bootstrap_key=_KEY)
    config = uvicorn.Config(build_app(settings, IdleRunner()), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    times = await asyncio.to_thread(_ask, port, requests)
    server.should_exit = True
    await serving
    return ServerTimes(statistics.median(times), statistics.quantiles(times, n=10)[-1], requests)


def _ask(port: int, requests: int) -> Sequence[float]:
    client = HTTPConnection("127.0.0.1", port)
    with closing(client):
        return [_time_one(client) for _ in range(requests + 20)][20:]


def _time_one(client: HTTPConnection) -> float:
    started = time.perf_counter()
    client.request("POST", "/api/features", _BODY, {"API-KEY": _KEY})
    client.getresponse().read()
    return (time.perf_counter() - started) * 1000
