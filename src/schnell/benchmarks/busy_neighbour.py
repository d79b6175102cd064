"""What other programs on the machine cost: the LoRA mix over HTTP beside busy processes, against the same without."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

import httpx

from schnell.benchmarks.many_loras import CLIENTS, LORAS, SCALE, drawn_size_engine, write_loras
from schnell.benchmarks.result import BenchmarkResult, in_own_thread, seconds_of
from schnell.benchmarks.server import KEY, request_body, server_process
from schnell.errors import BenchmarkError

#: Each number of neighbours in turn, twice, so that what else the machine does falls on all of them.
_NEIGHBOURS: Final = (0, 1, 2, 0, 1, 2)
_SECONDS_EACH: Final = 6.0
_SINGLE_PICTURES: Final = 15
_TIMEOUT_SECONDS: Final = 120.0


def busy_neighbour() -> BenchmarkResult:
    """Images a second of 16 clients over 16 LoRAs at 0.25 MP, beside one and two processes that never rest.

    The details have, from the same server, the seconds of a single picture of 1 MP while nothing else is asked of it.
    """
    with TemporaryDirectory() as scratch:
        files = in_own_thread(lambda: write_loras(drawn_size_engine(), Path(scratch), LORAS))
        with _server([file.peer for file in files], Path(scratch) / "data") as client:
            _draw_for(client, _SECONDS_EACH)  # the batch size is learnt
            single = median(_single_pictures(client))
            rates = _rates(client)
    quiet, one, two = (median(rates[count]) for count in (0, 1, 2))
    return BenchmarkResult(
        ours=one,
        unit="images/s",
        ours_is=f"{CLIENTS} clients, {LORAS} LoRAs, 0.25 MP over HTTP, beside one busy process",
        peer=quiet,
        peer_is="the same beside none",
        ratio=one / quiet,
        details={
            "beside_two_images_s": two,
            "beside_two_ratio": two / quiet,
            "rates": {str(count): [round(rate, 2) for rate in each] for count, each in rates.items()},
            "single_picture_s": single,
        },
    )


@contextmanager
def _server(files: Sequence[Path], folder: Path) -> Iterator[httpx.Client]:
    """A client of a new server that has these LoRAs, by their files' names."""
    limits = httpx.Limits(max_connections=CLIENTS)
    with (
        server_process(folder) as address,
        httpx.Client(
            base_url=f"http://{address}", headers={"API-KEY": KEY}, limits=limits, timeout=_TIMEOUT_SECONDS
        ) as client,
    ):
        for file in files:
            _post(client, "/api/loras", data={"name": file.stem}, files={"file": (file.name, file.read_bytes())})
        yield client


def _rates(client: httpx.Client) -> Mapping[int, Sequence[float]]:
    """Images a second by the number of neighbours."""
    rates: dict[int, list[float]] = {count: [] for count in _NEIGHBOURS}
    for count in _NEIGHBOURS:
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(_busy_process())
            rates[count].append(_draw_for(client, _SECONDS_EACH))
    return rates


@contextmanager
def _busy_process() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def _draw_for(client: httpx.Client, seconds: float) -> float:
    """Images a second of the clients, each of which waits for its picture before it asks for the next.

    All that were asked for within `seconds` are waited for, and count.
    """
    start = perf_counter()
    drawn, counting = [0], threading.Lock()

    def draw(index: int) -> None:
        while perf_counter() < start + seconds:
            _post(client, "/api/features", json=_body(index + drawn[0]))
            with counting:
                drawn[0] += 1

    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(draw, range(CLIENTS)))
    return drawn[0] / (perf_counter() - start)


def _body(index: int) -> dict[str, Any]:
    return request_body(
        prompt=f"red apple number {index % 64}",
        seed=index,
        lora_weights=f"lora_{index % LORAS}",
        lora_scale=SCALE,
        megapixels="0.25",
        go_fast=True,
    )


def _single_pictures(client: httpx.Client) -> Sequence[float]:
    body = request_body(prompt="red apple on a blue background", seed=7, go_fast=True)
    return [seconds_of(lambda: _post(client, "/api/features", json=body)) for _ in range(_SINGLE_PICTURES)]


def _post(client: httpx.Client, path: str, **content: Any) -> None:
    answer = client.post(path, **content)
    if answer.is_error:
        raise BenchmarkError(f"{path} answered {answer.status_code}: {answer.text[:500]}")
