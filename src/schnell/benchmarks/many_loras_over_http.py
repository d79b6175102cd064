"""The LoRA mix from end to end: requests to `schnell serve`, stored pictures with signed links in the answers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from schnell.benchmarks.result import seconds_of
from schnell.benchmarks.server import (KEY, request_body, serving)
from schnell.errors import BenchmarkError

_PATIENCE_SECONDS = 120


def seconds_over_http(
    files: Sequence[Path], prompts: Sequence[str], scale: float, megapixels: str, clients: int
) -> float:
    """How long a server of its own takes for one request a prompt, from so many clients, the LoRA files in turns.

    Resampling, safety check, the file, records and credits are in it; what loads and warms up the server is not.

    Raises:
        BenchmarkError: the server did not start, or refused.
    """
    alike = {"lora_scale": scale, "megapixels": megapixels, "go_fast": True}
    bodies = [
        request_body(prompt=prompt, seed=i, lora_weights=files[i % len(files)].stem, **alike)
        for i, prompt in enumerate(prompts)
    ]
    with (
        TemporaryDirectory(prefix="schnell-bench-") as folder,
        serving(Path(folder)) as address,
        _client(address, clients) as client,
        ThreadPoolExecutor(clients) as threads,
    ):
        for file in files:
            _post(client, "/api/loras", data={"name": file.stem}, files={"file": (file.name, file.read_bytes())})

        def draw_all() -> None:
            list(threads.map(lambda body: _post(client, "/api/features", json=body), bodies))

        draw_all()
        return seconds_of(draw_all)


def _client(address: str, clients: int) -> httpx.Client:
    return httpx.Client(
        base_url=f"http://{address}",
        headers={"API-KEY": KEY},
        limits=httpx.Limits(max_connections=clients),
        timeout=_PATIENCE_SECONDS,
    )


def _post(client: httpx.Client, path: str, **content: Any) -> None:
    answer = client.post(path, **content)
    if answer.is_error:
        raise BenchmarkError(f"{path} answered {answer.status_code}: {answer.text[:500]}")
