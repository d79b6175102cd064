"""What other programs on the machine cost: the LoRA mix over HTTP beside busy processes, against the same without."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

import httpx
import torch

from schnell.benchmarks.many_loras import CLIENTS, LORAS, SCALE, drawn_size_engine, write_loras
from schnell.benchmarks.result import BenchmarkResult, in_own_thread, seconds_of
from schnell.benchmarks.server import post, request_body, server_with_loras

#: Each number of neighbours in turn, twice, so that what else the machine does falls on all of them.
_NEIGHBOURS: Final = (0, 1, 2, 0, 1, 2)
_SECONDS_EACH: Final = 6.0
_SINGLE_PICTURES: Final = 15
_PRODUCT_SECONDS: Final = 3.0
#: One thread that multiplies matrices for so many seconds, waits for nobody, and says how often it did.
_PRODUCTS: Final = """
import sys, time, torch
torch.set_num_threads(1)
square, count = torch.randn(512, 512), 0
ends = time.perf_counter() + float(sys.argv[1])
while time.perf_counter() < ends:
    square @ square
    count += 1
print(count)
"""


def busy_neighbour() -> BenchmarkResult:
    """Images a second of 16 clients over 16 LoRAs at 0.25 MP, beside one and two processes that never rest.

    The details have, from the same server, the seconds of a single picture of 1 MP while nothing else is asked of it;
    and what processes of one thread, one a core, keep of their own rate beside the same neighbours: a fair share.
    """
    with TemporaryDirectory() as scratch:
        files = in_own_thread(lambda: write_loras(drawn_size_engine(), Path(scratch), LORAS))
        with server_with_loras(Path(scratch) / "data", [file.peer for file in files], CLIENTS) as client:
            _draw_for(client, _SECONDS_EACH)  # the batch size is learnt
            single = median(_single_pictures(client))
            rates = _rates(lambda: _draw_for(client, _SECONDS_EACH))
    quiet, one, two = (median(rates[count]) for count in (0, 1, 2))
    fair = {count: median(each) for count, each in _rates(_multiply).items()}
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
            "fair_ratio": fair[1] / fair[0],
            "fair_beside_two_ratio": fair[2] / fair[0],
            "rates": {str(count): [round(rate, 2) for rate in each] for count, each in rates.items()},
            "single_picture_s": single,
        },
    )


def _rates(measure: Callable[[], float]) -> Mapping[int, Sequence[float]]:
    """What is measured, by the number of neighbours."""
    rates: dict[int, list[float]] = {count: [] for count in _NEIGHBOURS}
    for count in _NEIGHBOURS:
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(_busy_process())
            rates[count].append(measure())
    return rates


def _multiply() -> float:
    """Matrix products a second of as many processes of one thread as torch has threads in this one."""
    command = [sys.executable, "-c", _PRODUCTS, str(_PRODUCT_SECONDS)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))  # noqa: S603 - our own text
            for _ in range(torch.get_num_threads())
        ]
        return sum(int(process.communicate()[0]) for process in processes) / _PRODUCT_SECONDS


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
            post(client, "/api/features", json=_body(index + drawn[0]))
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
    return [seconds_of(lambda: post(client, "/api/features", json=body)) for _ in range(_SINGLE_PICTURES)]
