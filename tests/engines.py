"""An engine that keeps what `Engine` promises, without arithmetic: for tests of what is built around it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from PIL import Image

from schnell.clock import Stopwatch
from schnell.engine.accelerator import Timing
from schnell.engine.denoise import Drawing, noise_levels
from schnell.engine.device import FLOAT32, Precision
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.slot_routing import SlotUse
from schnell.engine.text import PromptEmbedding
from schnell.errors import AdapterError
from schnell.spec import AdapterUse, GeneratedImage, Job, Size

SLOTS = 4


@dataclass
class Folder:
    sequence_length: int = 4
    name: str = "fake"

    def token_grid(self, size: Size) -> Size:
        return Size(size.width // 256, size.height // 256)


@dataclass
class EngineWithoutArithmetic:
    """Does what `Engine` promises, with one number for latents; raises where a job's prompt says so."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Folder = field(default_factory=Folder)
    in_slot: dict[int, str] = field(default_factory=dict)

    def precision_for(self, *, go_fast: bool) -> Precision:  # noqa: ARG002 - one precision is enough here
        return FLOAT32

    is_compiled = False
    adapter_slots = SLOTS
    threads = 2

    def most_rows(self, tokens: int) -> int:  # noqa: ARG002 - there is room for any
        return 16

    def prepare(self) -> Iterator[float]:
        yield from ()

    def read_ahead(self, adapter: AdapterUse, precision: Precision) -> bool:  # noqa: ARG002 - nothing to overlap with
        return False

    def warnings_for(self, *_: object) -> tuple[str, ...]:
        return ()

    def adapter_warnings(self, *_: object) -> tuple[str, ...]:
        return ()

    def place_adapters(
        self, adapters: Sequence[AdapterUse], slots: Sequence[int], precision: Precision
    ) -> tuple[SlotUse, ...]:
        assert precision == FLOAT32
        for adapter, slot in zip(adapters, slots, strict=True):
            assert 1 <= slot <= SLOTS
            if adapter.name == "damaged":
                raise AdapterError("this LoRA is damaged")
            self.in_slot[slot] = adapter.sha256
        return tuple(SlotUse(slot, adapter.scale) for adapter, slot in zip(adapters, slots, strict=True))

    def encode_prompts(self, requests: Sequence[PromptRequest], precision: Precision) -> list[PromptEmbedding]:
        assert precision == FLOAT32
        fail_if(any(request.prompt == "encode" for request in requests))
        return [cast("PromptEmbedding", Prompt(request)) for request in requests]

    def begin(self, job: Job, prompt: PromptEmbedding, slots: tuple[SlotUse, ...]) -> list[Drawing]:
        fail_if(job.spec.prompt == "begin")
        grid, levels = self.folder.token_grid(job.spec.size), noise_levels(job.spec.steps)
        return [Drawing(torch.zeros(1, 1), levels, 0, grid, prompt, slots) for _ in range(job.spec.num_outputs)]

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        assert precision == FLOAT32
        requests = [cast("Any", drawing.prompt).request for drawing in drawings]
        for request in requests:
            # a picture never steps while another LoRA sits in a slot of its own
            assert [self.in_slot[use.slot] for use in request.slots] == [use.sha256 for use in request.adapters]
        fail_if(any(request.prompt == "step" for request in requests))
        return [replace(drawing, step=drawing.step + 1, estimate=drawing.latents) for drawing in drawings]

    def start_timing(self) -> Timing:
        return lambda: 0.001

    def make_current(self) -> None:
        return

    def synchronize(self) -> None:
        return

    def is_alive(self) -> bool:
        return True

    def release_memory(self) -> None:
        return

    def decode(self, drawings: Sequence[Drawing], precision: Precision, *, tiles: bool = False) -> list[Image.Image]:  # noqa: ARG002 - the engine's form
        assert precision == FLOAT32
        assert all(drawing.is_done for drawing in drawings)
        fail_if(any(cast("Any", drawing.prompt).request.prompt == "decode" for drawing in drawings))
        return [Image.new("RGB", (8, 8)) for _ in drawings]

    def finish(self, job: Job, index: int, drawn: Image.Image, watch: Stopwatch) -> GeneratedImage:  # noqa: ARG002
        fail_if(job.spec.prompt == "finish")
        return GeneratedImage(index, index, job.id.encode(), "image/webp", 8, 8, {})


@dataclass
class Prompt:
    request: PromptRequest
    was_truncated: bool = False


def fail_if(condition: bool) -> None:
    if condition:
        raise RuntimeError("as a kernel fails")


class NothingLearned:
    """Previews need real latents."""

    is_ready = False

    def lesson(self, *_: object) -> None:
        return
