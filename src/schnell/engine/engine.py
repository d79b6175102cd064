"""One model on one device: each stage of a picture as one call, and `generate`, which runs them all for one job.

The serving worker calls the same stages, with the rows of several jobs in a batch.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import torch
from PIL import Image
from torch import nn

from schnell.adapters.decompose import MAX_RANK
from schnell.clock import Stopwatch
from schnell.engine.adapter_slots import AdapterSlots
from schnell.engine.denoise import Drawing, begin_drawing, denoise_step
from schnell.engine.device import Precision, choose_precision
from schnell.engine.image_file import MEDIA_TYPES, encode_image
from schnell.engine.loading import Networks, load_networks
from schnell.engine.pictures import decode_latents, fit_to_size
from schnell.engine.receipt import AdapterReceipt, Receipt, engine_version
from schnell.engine.safety import SafetyChecker
from schnell.engine.slot_linear import SlotPlan, install_slots
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.text import PromptCache, PromptEmbedding, TextEncoder
from schnell.engine.weight_names import layer_rows
from schnell.errors import GenerationFailedError
from schnell.models.folder import ModelFolder, weights_sha256
from schnell.spec import AdapterUse, GeneratedImage, Job, JobOutcome, Progress, ProgressListener, output_seed

#: How many different LoRAs can be loaded into a model's layers at once.
DEFAULT_ADAPTER_SLOTS: Final = 16
#: The largest rank that they may have; conversion brings every LoRA to 128 or less.
DEFAULT_ADAPTER_RANK: Final = MAX_RANK
#: How many bytes of LoRAs are kept in memory beside the slots, so that one that comes back is not read from disk again.
DEFAULT_ADAPTER_BYTES: Final = 2 << 30
#: At FLUX.1's own size a prompt of 256 tokens takes 2 MiB in bfloat16: room for 128 prompts.
_PROMPT_CACHE_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A prompt to encode, and the LoRAs to encode it with: `slots` holds the slot of each of `adapters`."""

    prompt: str
    adapters: tuple[AdapterUse, ...] = ()
    slots: tuple[SlotUse, ...] = ()


class LoadedModel:
    """A model's networks in one precision, with LoRA slots in the linear layers of all but the autoencoder."""

    def __init__(self, networks: Networks, folder: ModelFolder, plan: SlotPlan, adapter_bytes: int) -> None:
        self.networks, self.transformer = networks, networks.transformer
        self.routing = SlotRouting(plan.device, static=plan.reserved)
        parts = {
            f"transformer.{name}": part
            for name, part in install_slots(networks.transformer, self.routing, plan, layer_rows).items()
        }
        for component, network in (("text_encoder", networks.clip), ("text_encoder_2", networks.t5)):
            # the text encoders run once a prompt and uncompiled: their slots take memory while a LoRA is in them
            on_demand = replace(plan, reserved=False)
            parts |= {
                f"{component}.{name}": part for name, part in install_slots(network, self.routing, on_demand).items()
            }
        self.slots = AdapterSlots(parts, self.routing, plan, adapter_bytes)
        self._text = TextEncoder(folder.path, folder.sequence_length, networks.clip, networks.t5)

    def text_adapters(self, request: PromptRequest) -> tuple[tuple[str, float], ...]:
        """Hash and scale of those of the request's LoRAs that act on a text encoder: they decide its embedding too."""
        in_slots = zip(request.adapters, request.slots, strict=True)
        return tuple((used.sha256, used.scale) for used, at in in_slots if self.slots.acts_on_text(at.slot))

    def encode(self, requests: Sequence[PromptRequest]) -> list[PromptEmbedding]:
        """Both text encoders over a batch of prompts, each with its LoRAs."""
        with self.routing.using([request.slots for request in requests]):
            return self._text.encode([request.prompt for request in requests])


class Engine:
    """One model's weights, LoRA slots and prompt cache. The networks of a precision are loaded when first asked for.

    `adapter_slots` LoRAs of ranks up to `adapter_rank` can be in each precision's layers at once; on a GPU their memory
    is taken when the networks are loaded. One thread at a time may encode, step and decode; `finish` may run in another
    beside it.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what the operator decides, each with its default
        self,
        folder: ModelFolder,
        device: torch.device,
        safety: SafetyChecker | None = None,
        adapter_slots: int = DEFAULT_ADAPTER_SLOTS,
        adapter_bytes: int = DEFAULT_ADAPTER_BYTES,
        adapter_rank: int = DEFAULT_ADAPTER_RANK,
    ) -> None:
        self.folder = folder
        self.device = device
        self._safety = safety
        self.adapter_slots = adapter_slots
        self._adapter_bytes, self._adapter_rank = adapter_bytes, adapter_rank
        self._loaded: dict[Precision, LoadedModel] = {}
        # two threads that ask for a precision at once must not both load it: the second waits for the first
        self._load_lock = threading.Lock()
        self._prompts = PromptCache(_PROMPT_CACHE_BYTES)

    @cached_property
    def model_sha256(self) -> str:
        """The SHA-256 of the transformer's weights, in hexadecimal."""
        return weights_sha256(self.folder.path)

    def precision_for(self, *, go_fast: bool) -> Precision:
        """The precision that a request with this value of `go_fast` runs in."""
        return choose_precision(self.device, go_fast=go_fast)

    def load(self, precision: Precision) -> None:
        """Load the networks of a precision, so that the first picture does not wait for them.

        Raises:
            ModelFolderError: a weight file is missing or does not fit its configuration.
        """
        self._loaded_model(precision)

    def network(self, name: str, precision: Precision) -> nn.Module:
        """One of the model's networks: `transformer`, `vae`, `clip` or `t5`."""
        network: nn.Module = getattr(self._loaded_model(precision).networks, name)
        return network

    def place_adapters(
        self, adapters: Sequence[AdapterUse], slots: Sequence[int], precision: Precision
    ) -> tuple[SlotUse, ...]:
        """Load each LoRA into its slot (1 and up), unless it is there already; whatever else was there is replaced.

        Who may use which slot is decided by the caller (`serving/slot_leases.py`), never here.

        Raises:
            AdapterError: a file is damaged or does not fit the model; its slot is empty then.
        """
        model = self._loaded_model(precision)
        for adapter, slot in zip(adapters, slots, strict=True):
            model.slots.load(slot, adapter)
        return tuple(SlotUse(slot, adapter.scale) for adapter, slot in zip(adapters, slots, strict=True))

    def adapter_warnings(self, adapters: Sequence[AdapterUse], precision: Precision) -> tuple[str, ...]:
        """What the caller should know about how these LoRAs, which have been placed, are drawn."""
        slots = self._loaded_model(precision).slots
        return tuple(warning for adapter in adapters for warning in slots.warnings_for(adapter.sha256))

    def encode_prompts(self, requests: Sequence[PromptRequest], precision: Precision) -> list[PromptEmbedding]:
        """Embeddings of these prompts, in their order; those not in the cache are encoded in one batch.

        A request's slots must be held.
        """
        model = self._loaded_model(precision)
        keys = [(request.prompt, precision, model.text_adapters(request)) for request in requests]
        new = {key: request for key, request in zip(keys, requests, strict=True) if self._prompts.get(key) is None}
        fresh = dict(zip(new, model.encode(list(new.values())), strict=True)) if new else {}
        # looked up before the new ones are put in, as those may push out others of this very batch
        found = [fresh.get(key) or self._prompts.get(key) for key in keys]
        for key, embedding in fresh.items():
            self._prompts.put(key, embedding)
        return [embedding for embedding in found if embedding is not None]

    def forget_prompts(self) -> None:
        """Empty the cache of prompt embeddings."""
        self._prompts = PromptCache(_PROMPT_CACHE_BYTES)

    def begin(self, job: Job, prompt: PromptEmbedding, slots: tuple[SlotUse, ...] = ()) -> list[Drawing]:
        """The drawings of a job before their first step, one an output; output i has the job's seed plus i."""
        grid = self.folder.token_grid(job.spec.size)
        seeds = [output_seed(job.seed, index) for index in range(job.spec.num_outputs)]
        return [begin_drawing(prompt, seed, job.spec.steps, grid, slots) for seed in seeds]

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        """Take drawings of one token grid a step further, whatever their prompts, seeds, timesteps and LoRAs."""
        model = self._loaded_model(precision)
        with model.routing.using([drawing.slots for drawing in drawings]):
            return denoise_step(model.transformer, drawings)

    def decode(self, drawings: Sequence[Drawing], precision: Precision) -> list[Image.Image]:
        """Pictures of finished drawings of one token grid, at the size they were drawn at.

        Raises:
            GenerationFailedError: latents hold NaN or infinity.
        """
        for drawing in drawings:
            # NaN would decode to a black picture, which looks like a result
            if not torch.isfinite(drawing.latents).all():
                raise GenerationFailedError(
                    "the model's output is not a number; try without go_fast or another LoRA scale"
                )
        return decode_latents(self._loaded_model(precision).networks.vae, drawings)

    def finish(self, job: Job, index: int, drawn: Image.Image, watch: Stopwatch) -> GeneratedImage | None:
        """Resample one drawn picture to its exact size, check it, and encode its file. None: it was flagged as unsafe.

        `index` is the output's place in the job; `watch` is given the seconds of each of the three.
        """
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
            engine=engine_version(),
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

    def _loaded_model(self, precision: Precision) -> LoadedModel:
        with self._load_lock:
            if precision not in self._loaded:
                networks = load_networks(self.folder.path, precision, self.device)
                self._loaded[precision] = LoadedModel(
                    networks, self.folder, self._slot_plan(precision), self._adapter_bytes
                )
            return self._loaded[precision]

    def _slot_plan(self, precision: Precision) -> SlotPlan:
        return SlotPlan(
            count=self.adapter_slots + 1,  # slot 0 is no LoRA
            rank=self._adapter_rank,
            dtype=precision.dtype,
            device=self.device,
            reserved=self.device.type != "cpu",
        )


def generate(engine: Engine, job: Job, on_progress: ProgressListener) -> JobOutcome:
    """One job alone, from prompt to files.

    Raises:
        ModelFolderError: a weight file is missing or does not fit its configuration.
        AdapterError: a LoRA file is damaged or does not fit the model.
        GenerationFailedError: the model's output is not a number.
    """
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
    warnings = (*warnings_for(prompt, engine.folder), *engine.adapter_warnings(job.adapters, precision))
    return outcome_of(finished, warnings, watch.seconds)


def outcome_of(
    finished: Sequence[GeneratedImage | None], warnings: tuple[str, ...], timings: dict[str, float]
) -> JobOutcome:
    """A job's outcome from its outputs in order, None for each that was flagged as unsafe; `timings` in seconds."""
    return JobOutcome(
        images=tuple(image for image in finished if image is not None),
        flagged=tuple(index for index, image in enumerate(finished) if image is None),
        warnings=warnings,
        timings=timings,
    )


def warnings_for(prompt: PromptEmbedding, folder: ModelFolder) -> tuple[str, ...]:
    """What the caller should know about how the prompt was encoded."""
    if not prompt.was_truncated:
        return ()
    return (
        f"the prompt is longer than the {folder.sequence_length} tokens that {folder.name} reads: its end was ignored",
    )
