"""What a worker does for requests that have not come to their turn: compile what they will run, bring their LoRAs near.

Both take time that nobody should wait for. Compiling is done before the server calls itself ready; LoRAs are read and
copied while the device is busy with the steps of others.
"""

from collections.abc import Iterator
from time import perf_counter
from typing import Final

import structlog

from schnell.engine.engine import Engine
from schnell.serving.jobs import LaneT
from schnell.serving.queue import JobQueue
from schnell.spec import AdapterUse

log = structlog.get_logger(__name__)

#: What is told while programs are made: 1 is for when there are none left.
_NEARLY: Final = 0.99


def prepare(engine: Engine, device: str) -> Iterator[float]:
    """Compile what requests will run, as far as the caller goes on; yields the share that is done.

    A compiler that fails is no reason not to draw: the engine then runs uncompiled.
    """
    start = perf_counter()
    try:
        for share in engine.prepare():
            log.info("compiling", device=device, percent=round(100 * share))
            yield min(share, _NEARLY)
    except Exception:
        # slower pictures are better than none, and the next start may find a compiler that works
        log.exception("compiling failed: pictures are drawn uncompiled", device=device)
    else:
        log.info("compiled", device=device, seconds=round(perf_counter() - start, 1))


def load_ahead(engine: Engine, queue: JobQueue[LaneT], device: int) -> None:
    """Bring LoRAs of those next in line into host memory, and from there into slots that nobody needs.

    To be called while the device works: it only asks for copies and reads, and waits for none.
    """
    for queued in queue.next_in_line(device):
        for adapter in queued.job.adapters:
            go_fast = queued.job.spec.go_fast
            if engine.read_ahead(adapter, engine.precision_for(go_fast=go_fast)):
                _place(engine, queue, device, adapter, go_fast=go_fast)


def _place(engine: Engine, queue: JobQueue[LaneT], device: int, adapter: AdapterUse, *, go_fast: bool) -> None:
    slot = queue.stage(adapter.sha256, device)
    if slot is None:
        return
    try:
        engine.place_adapters([adapter], [slot], engine.precision_for(go_fast=go_fast))
    except Exception as error:  # noqa: BLE001 - it fails again where it is used, with the job that uses it
        log.info("a LoRA could not be loaded ahead", lora=adapter.name, error=str(error))
