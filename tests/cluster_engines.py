"""Replicas for tests: with the engine without arithmetic, whose steps take a fixed time."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from PIL import Image

from engines import EngineWithoutArithmetic, NothingLearned
from s3_servers import BUCKET
from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.assets.s3 import S3Assets
from schnell.assets.store import AssetStore
from schnell.clock import Stopwatch
from schnell.engine.accelerator import Timing
from schnell.engine.denoise import Drawing
from schnell.engine.device import Precision
from schnell.engine.engine import Engine
from schnell.engine.slot_routing import SlotUse
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.ray_replica import ReplicaParts
from schnell.serving.replica_files import ReplicaFiles
from schnell.serving.runner import InProcessRunner
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import AdapterUse, GeneratedImage, Job, output_seed


def open_store(folder: Path, bucket_at: str = "") -> AssetStore:
    """What gateways and replicas share: a folder, or the bucket of a server, to which the environment has the keys."""
    if bucket_at:
        return S3Assets(BUCKET, "prefix", endpoint=bucket_at)
    return LocalAssets(folder / "pictures", LinkSigner("x" * 32), "http://test")


@dataclass
class SteadyEngine(EngineWithoutArithmetic):
    """Every step takes `step_seconds`, every LoRA `load_seconds`; what was done is written to `diary`, if there is one.

    A step with a prompt `slow …` among its pictures takes five times as long: longer than a busy machine needs to pass
    a message on.

    A picture depends on nothing but its job: prompt, seed and LoRAs.
    """

    step_seconds: float = 0.05
    load_seconds: float = 0.0
    diary: Path | None = None
    loaded: dict[int, str] = field(default_factory=dict)

    def note(self, text: str) -> None:
        if self.diary is not None:
            with self.diary.open("a") as file:
                file.write(f"{os.getpid()} {text}\n")

    def place_adapters(
        self,
        adapters: Sequence[AdapterUse],
        slots: Sequence[int],
        precision: Precision,  # noqa: ARG002 - there is one
    ) -> tuple[SlotUse, ...]:
        for adapter, slot in zip(adapters, slots, strict=True):
            if self.loaded.get(slot) != adapter.sha256:
                assert adapter.path.is_file()
                time.sleep(self.load_seconds)
                self.loaded[slot] = adapter.sha256
                self.note(f"load {adapter.sha256}")
            self.in_slot[slot] = adapter.sha256
        return tuple(SlotUse(slot, adapter.scale) for adapter, slot in zip(adapters, slots, strict=True))

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        prompts = [cast("Any", drawing.prompt).request.prompt for drawing in drawings]
        time.sleep(self.step_seconds * (5 if any(each.startswith("slow") for each in prompts) else 1))
        for prompt in prompts:
            self.note(f"step {prompt}")
            self._hang_once(prompt)
        return super().step(drawings, precision)

    def _hang_once(self, prompt: str) -> None:
        """As a GPU that never answers: the first time that a prompt `hangs …` is drawn, its step does not end."""
        if prompt.startswith("hangs") and self.diary is not None:
            mark = self.diary.with_name(f"{prompt}.hung")
            if not mark.exists():
                mark.touch()
                time.sleep(3600)

    def start_timing(self) -> Timing:
        start = time.perf_counter()
        return lambda: time.perf_counter() - start

    def finish(self, job: Job, index: int, drawn: Image.Image, watch: Stopwatch) -> GeneratedImage:  # noqa: ARG002
        seed = output_seed(job.seed, index)
        buffer = BytesIO()
        # small: what a picture costs to encode is not what these tests are about
        Image.new("RGB", (8, 8), (seed % 251, seed // 251 % 251, len(job.adapters))).save(buffer, "WEBP")
        receipt = {
            "model": {"name": "schnell-mini"},
            "seed": seed,
            "prompt": job.spec.prompt,
            "loras": [use.sha256 for use in job.adapters],
        }
        return GeneratedImage(
            index, seed, buffer.getvalue(), "image/webp", job.spec.size.width, job.spec.size.height, receipt
        )


def build_steady(  # noqa: PLR0917 - what tests choose
    folder: Path,
    step_seconds: float = 0.05,
    load_seconds: float = 0.0,
    rows: int = 1,
    slots: int = 4,
    bucket_at: str = "",
) -> ReplicaParts:
    """A replica over a `SteadyEngine`; LoRA files come from the folder of pictures, or from the bucket of a server."""
    engine = SteadyEngine(step_seconds=step_seconds, load_seconds=load_seconds, diary=folder / "diary.txt")
    sizer: BatchSizer[LaneKey] = BatchSizer(first=rows)
    queue: JobQueue[LaneKey] = JobQueue(lambda _: rows, slots)
    worker = Worker(cast("Engine", engine), queue, sizer)
    worker._previews = cast("Any", NothingLearned())
    worker.start()
    engine.note("start")
    store = open_store(folder, bucket_at)
    files = ReplicaFiles(folder / f"replica-{id(engine)}", store.fetch_file, 10**9)
    return ReplicaParts(InProcessRunner(worker), files)
