"""One model on one device: each stage of a picture as one call, and `generate`, which strings them together."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from PIL import Image
from torch import nn

from schnell.clock import Stopwatch
from schnell.engine.adapter_slots import AdapterSlots
from schnell.engine.cpu_forward import FluxForward
from schnell.engine.denoise import Drawing, begin_drawing, denoise_step
from schnell.engine.device import Precision, choose_precision
from schnell.engine.image_file import MEDIA_TYPES, encode_image
from schnell.engine.loading import Networks, load_networks
from schnell.engine.pictures import decode_latents, fit_to_size
from schnell.engine.receipt import ENGINE_VERSION, AdapterReceipt, Receipt
from schnell.engine.safety import SafetyChecker
from schnell.engine.slot_linear import install_slots
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.text import PromptCache, PromptEmbedding, TextEncoder
from schnell.errors import GenerationFailedError
from schnell.models.folder import ModelFolder, weights_sha256
from schnell.spec import AdapterUse, GeneratedImage, Job, JobOutcome, Progress, ProgressListener, output_seed

DEFAULT_ADAPTER_SLOTS: Final = 16
_PROMPT_CACHE_BYTES: Final = 256 << 20
DEFAULT_ADAPTER_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A prompt, and the LoRAs in whose presence it is read."""

    prompt: str
    adapters: tuple[AdapterUse, ...] = ()
    slots: tuple[SlotUse, ...] = ()


class LoadedModel:
    """A model's networks in one precision, with LoRA slots in all their linear layers."""

    def __init__(self, networks: Networks, folder: ModelFolder, slot_count: int, adapter_bytes: int) -> None:
        device = next(networks.transformer.parameters()).device
        if device.type == "cpu":
            # oneDNN's convolutions take channels-last tensors as they are: a quarter off the decoder's time
            networks.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types leave it out
        self.networks = networks
        self.routing = SlotRouting(device)
        parts = {"transformer": networks.transformer, "text_encoder": networks.clip, "text_encoder_2": networks.t5}
        layers = {
            f"{component}.{path}": layer
            for component, network in parts.items()
            for path, layer in install_slots(network, self.routing, slot_count).items()
        }
        self.slots = AdapterSlots(layers, adapter_bytes)
        self.velocity: Any = FluxForward(networks.transformer) if device.type == "cpu" else networks.transformer
        self._text = TextEncoder(folder.path, folder.sequence_length, networks.clip, networks.t5)

    def text_adapters(self, request: PromptRequest) -> tuple[tuple[str, float], ...]:
        """Hash and scale of the request's LoRAs that change how its prompt is read."""
        in_slots = zip(request.adapters, request.slots, strict=True)
        return tuple((used.sha256, used.scale) for used, at in in_slots if self.slots.acts_on_text(at.slot))

    def encode(self, requests: Sequence[PromptRequest]) -> list[PromptEmbedding]:
        """Both text encoders over a batch of prompts, each with its LoRAs."""
        with self.routing.using([request.slots for request in requests]):
            return self._text.encode([request.prompt for request in requests])


class Engine:
    """Owns the weights of one model. Networks of a precision are loaded when it is first asked for."""

    def __init__(
        self,
        folder: ModelFolder,
        device: torch.device,
        safety: SafetyChecker | None = None,
        adapter_slots: int = DEFAULT_ADAPTER_SLOTS,
        adapter_bytes: int = DEFAULT_ADAPTER_BYTES,
    ) -> None:
        self.folder = folder
        self.device = device
        self._safety = safety
        self.adapter_slots = adapter_slots
        self._adapter_bytes = adapter_bytes
        self._loaded: dict[Precision, LoadedModel] = {}
        self._load_lock = threading.Lock()
        self._prompts = PromptCache(_PROMPT_CACHE_BYTES)

    @cached_property
    def model_sha256(self) -> str:
        """The hash of the transformer's weights."""
        return weights_sha256(self.folder.path)

    @property
    def adapter_memory_bytes(self) -> int:
        """What loaded LoRAs take beside the slots, in all precisions."""
        return sum(model.slots.memory_bytes for model in self._loaded.values())

    def precision_for(self, *, go_fast: bool) -> Precision:
        """The precision in which a request with this switch runs."""
        return choose_precision(self.device, go_fast=go_fast)

    def load(self, precision: Precision) -> None:
        """Make the networks of a precision ready, so that the first picture does not wait for them."""
        self._part(precision)

    def network(self, name: str, precision: Precision) -> nn.Module:
        """One of the model's networks: `transformer`, `vae`, `clip` or `t5`."""
        network: nn.Module = getattr(self._part(precision).networks, name)
        return network

    def place_adapters(
        self, adapters: Sequence[AdapterUse], slots: Sequence[int], precision: Precision
    ) -> tuple[SlotUse, ...]:
        """Load each LoRA into its slot (1 and up), unless it is there already; whatever else was there is replaced.

        Who may use which slot is decided by the caller (`serving/slot_leases.py`), never here.

        Raises:
            AdapterError: a file is damaged or does not fit the model; its slot is empty then.
        """
        part = self._part(precision)
        for adapter, slot in zip(adapters, slots, strict=True):
            part.slots.load(slot, adapter)
        return tuple(SlotUse(slot, adapter.scale) for adapter, slot in zip(adapters, slots, strict=True))

    def encode_prompts(self, requests: Sequence[PromptRequest], precision: Precision) -> list[PromptEmbedding]:
        """Embeddings of these prompts; those not in the cache go through both text encoders in one batch."""
        part = self._part(precision)
        keys = [(request.prompt, precision, part.text_adapters(request)) for request in requests]
        new = {key: request for key, request in zip(keys, requests, strict=True) if self._prompts.get(key) is None}
        fresh = dict(zip(new, part.encode(list(new.values())), strict=True)) if new else {}
        found = [fresh.get(key) or self._prompts.get(key) for key in keys]
        for key, embedding in fresh.items():
            self._prompts.put(key, embedding)
        return [embedding for embedding in found if embedding is not None]

    def forget_prompts(self) -> None:
        """Empty the cache of prompt embeddings."""
        self._prompts = PromptCache(_PROMPT_CACHE_BYTES)

    def begin(self, job: Job, prompt: PromptEmbedding, slots: tuple[SlotUse, ...] = ()) -> list[Drawing]:
        """The drawings of a job before their first step, one an output."""
        grid = self.folder.token_grid(job.spec.size)
        seeds = [output_seed(job.seed, index) for index in range(job.spec.num_outputs)]
        return [begin_drawing(prompt, seed, job.spec.steps, grid, slots) for seed in seeds]

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        """Take drawings of one token grid a step further, whatever their prompts, seeds, timesteps and LoRAs."""
        part = self._part(precision)
        with part.routing.using([drawing.slots for drawing in drawings]):
            return denoise_step(part.velocity, drawings)

    def decode(self, drawings: Sequence[Drawing], precision: Precision) -> list[Image.Image]:
        """Pictures, at drawn size, of finished drawings of one token grid.

        Raises:
            GenerationFailedError: latents are not numbers.
        """
        for drawing in drawings:
            if not torch.isfinite(drawing.latents).all():
                raise GenerationFailedError(
                    "the model's output is not a number; try without go_fast or another LoRA scale"
                )
        return decode_latents(self._part(precision).networks.vae, drawings)

    def finish(self, job: Job, index: int, drawn: Image.Image, watch: Stopwatch) -> GeneratedImage | None:
        """Resample one drawn picture to its exact size, check it, and write the file. None: it was flagged."""
        with watch.timing("resample"):
            picture = fit_to_size(drawn, job.spec.size, self.folder.draw_scale)
        with watch.timing("safety"):
            if job.spec.safety_checker and self._safety is not None and self._safety.flags(drawn):
                return None
        with watch.timing("encode"):
            return self._write(job, index, picture)

    def _write(self, job: Job, index: int, picture: Image.Image) -> GeneratedImage:
        receipt = self._receipt(job, index)
        return GeneratedImage(
            index=index,
            seed=receipt.seed,
            data=encode_image(picture, receipt),
            media_type=MEDIA_TYPES[receipt.output_format],
            width=picture.width,
            height=picture.height,
            receipt=receipt.to_json(),
        )

    def _receipt(self, job: Job, index: int) -> Receipt:
        spec = job.spec
        return Receipt(
            engine=ENGINE_VERSION,
            model=self.folder.name,
            model_sha256=self.model_sha256,
            precision=self.precision_for(go_fast=spec.go_fast).name,
            prompt=spec.prompt,
            seed=output_seed(job.seed, index),
            width=spec.size.width,
            height=spec.size.height,
            steps=spec.steps,
            go_fast=spec.go_fast,
            output_format=spec.output_format,
            output_quality=spec.output_quality,
            loras=tuple(AdapterReceipt(used.name, used.sha256, used.scale) for used in job.adapters),
        )

    def _part(self, precision: Precision) -> "LoadedModel":
        with self._load_lock:
            if precision not in self._loaded:
                networks = load_networks(self.folder.path, precision, self.device)
                slots = self.adapter_slots + 1  # slot 0 is no LoRA
                self._loaded[precision] = LoadedModel(networks, self.folder, slots, self._adapter_bytes)
            return self._loaded[precision]


def generate(engine: Engine, job: Job, on_progress: ProgressListener) -> JobOutcome:
    """One job alone, from prompt to files: the whole path of a request on one screen."""
    watch = Stopwatch()
    precision = engine.precision_for(go_fast=job.spec.go_fast)
    with watch.timing("load"):
        engine.load(precision)
    on_progress(Progress("text"))
    with watch.timing("text"):
        slots = engine.place_adapters(job.adapters, range(1, len(job.adapters) + 1), precision)
        [prompt] = engine.encode_prompts([PromptRequest(job.spec.prompt, job.adapters, slots)], precision)
    drawings = engine.begin(job, prompt, slots)
    for step in range(job.spec.steps):
        on_progress(Progress("denoise", step, job.spec.steps))
        with watch.timing("denoise"):
            drawings = engine.step(drawings, precision)
    on_progress(Progress("decode", job.spec.steps, job.spec.steps))
    with watch.timing("decode"):
        pictures = engine.decode(drawings, precision)
    finished = [engine.finish(job, index, picture, watch) for index, picture in enumerate(pictures)]
    return outcome_of(finished, warnings_for(prompt, engine.folder), watch.seconds)


def outcome_of(
    finished: Sequence[GeneratedImage | None], warnings: tuple[str, ...], timings: dict[str, float]
) -> JobOutcome:
    """Gather a job's finished outputs; None stands for a flagged one."""
    return JobOutcome(
        images=tuple(image for image in finished if image is not None),
        flagged=tuple(index for index, image in enumerate(finished) if image is None),
        warnings=warnings,
        timings=timings,
    )


def warnings_for(prompt: PromptEmbedding, folder: ModelFolder) -> tuple[str, ...]:
    """What the caller should know about how the prompt was read."""
    if not prompt.was_truncated:
        return ()
    return (
        f"the prompt is longer than the {folder.sequence_length} tokens that {folder.name} reads: its end was ignored",
    )
