"""One model on one device: each stage of a picture as one call, and `generate`, which runs them all for one job.

The serving worker calls the same stages, with the rows of several jobs in a batch.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final

import torch
from PIL import Image
from torch import nn

from schnell.adapters.decompose import MAX_RANK
from schnell.clock import Stopwatch
from schnell.engine.accelerator import (
    Timing,
    is_alive,
    is_out_of_memory,
    make_current,
    release_memory,
    start_timing,
    synchronize,
)
from schnell.engine.compiler import Compiler
from schnell.engine.cpu_team import CpuTeam
from schnell.engine.denoise import Drawing, begin_drawing
from schnell.engine.device import Precision, choose_precision
from schnell.engine.flux import FluxParams
from schnell.engine.loaded_model import LoadedModel, PromptRequest
from schnell.engine.loading import Networks, load_networks
from schnell.engine.memory_sums import ADAPTER_BYTES, Form
from schnell.engine.pictures import decode_latents, fit_to_size
from schnell.engine.planned_networks import PlannedLoading
from schnell.engine.quantized import PathChoice
from schnell.engine.quantized_files import QuantizedFiles
from schnell.engine.safety import SafetyChecker
from schnell.engine.slot_linear import SlotPlan
from schnell.engine.slot_routing import SlotUse
from schnell.engine.text import PromptCache, PromptEmbedding
from schnell.errors import GenerationFailedError, ModelFolderError
from schnell.models.folder import ModelFolder, weights_sha256
from schnell.provenance.image_file import MEDIA_TYPES, encode_image
from schnell.provenance.proof import NO_PROOF, Proof
from schnell.provenance.receipt import AdapterReceipt, Receipt, engine_version
from schnell.spec import AdapterUse, GeneratedImage, Job, JobOutcome, Progress, ProgressListener, Size, output_seed

#: How many different LoRAs can be loaded into a model's layers at once.
DEFAULT_ADAPTER_SLOTS: Final = 16
#: The largest rank that they may have; conversion brings every LoRA to 128 or less.
DEFAULT_ADAPTER_RANK: Final = MAX_RANK
#: How many bytes of LoRAs are kept in memory beside the slots, so that one that comes back is not read from disk again.
DEFAULT_ADAPTER_BYTES: Final = ADAPTER_BYTES
#: Two threads that ask for a precision at once must not both load it; and diffusers, while it loads, changes torch's
#: defaults for the whole process, so engines of several devices load one after the other.
_LOADING: Final = threading.Lock()
#: Latent tokens of a megapixel at FLUX.1's own size.
_MEASURED_TOKENS: Final = 4096
#: At FLUX.1's own size a prompt of 256 tokens takes 2 MiB in bfloat16: room for 128 prompts.
_PROMPT_CACHE_BYTES: Final = 256 << 20


class Engine:
    """One model's weights, LoRA slots and prompt cache. The networks of a precision are loaded when first asked for.

    `adapter_slots` LoRAs of ranks up to `adapter_rank` can be in each precision's layers at once; on a GPU their memory
    is taken when the networks are loaded. `form` is that of the server's memory plan, and has slots and rank of its
    own; without one, networks run as their weights are. `files` keeps what was quantized. With a `compiler`, `prepare`
    compiles the transformer's blocks. One thread at a time may encode, step and decode; `finish` may run in another
    beside it.
    """

    def __init__(  # noqa: PLR0913 - what the operator decides, each with its default
        self,
        folder: ModelFolder,
        device: torch.device,
        safety: SafetyChecker | None = None,
        *,
        adapter_slots: int = DEFAULT_ADAPTER_SLOTS,
        adapter_bytes: int = DEFAULT_ADAPTER_BYTES,
        adapter_rank: int = DEFAULT_ADAPTER_RANK,
        form: Form | None = None,
        files: QuantizedFiles | None = None,
        compiler: Compiler | None = None,
        proof: Proof = NO_PROOF,
    ) -> None:
        self.folder = folder
        self.device = device
        self._safety = safety
        self._proof = proof
        self.form, self._files, self._compiler = form, files, compiler
        self.adapter_slots = form.adapter_slots if form else adapter_slots
        self._adapter_bytes, self._adapter_rank = adapter_bytes, form.adapter_rank if form else adapter_rank
        # by dtype: arithmetics that share one share the networks, and with them the LoRA slots
        self._loaded: dict[torch.dtype, LoadedModel] = {}
        self._prompts, self._team = PromptCache(_PROMPT_CACHE_BYTES), CpuTeam.of(device)

    @cached_property
    def model_sha256(self) -> str:
        """The SHA-256 of the transformer's weights, in hexadecimal."""
        return weights_sha256(self.folder.path)

    def precision_for(self, *, go_fast: bool) -> Precision:
        """The precision that a request with this value of `go_fast` runs in."""
        if self.form is None:
            return choose_precision(self.device, go_fast=go_fast)
        return self.form.precision_for(go_fast=go_fast)

    def most_rows(self, tokens: int) -> int:
        """The most rows of so many latent tokens that the plan has memory for in one step; one is always possible."""
        if self.form is None:
            return sys.maxsize
        columns, rows = self.folder.token_grid(Size(1024, 1024))
        of_text = self.folder.sequence_length
        return max(1, self.form.rows * (columns * rows + of_text) // (tokens + of_text))

    def decodes_in_tiles(self, grid: Size) -> bool:
        """Whether the plan has memory for decoding pictures of this token grid in strips only."""
        pixels = grid.width * grid.height * self.folder.pixels_per_token**2
        return self.form is not None and self.form.decodes_in_tiles(pixels)

    def load(self, precision: Precision) -> None:
        """Load the networks of a precision, so that the first picture does not wait for them.

        Raises:
            ModelFolderError: a weight file is missing or does not fit its configuration.
        """
        self._loaded_model(precision)

    @property
    def threads(self) -> int:
        """How many threads a step is computed with on a CPU."""
        return torch.get_num_threads()

    @property
    def is_compiled(self) -> bool:
        """Whether `prepare` has something to do before requests should come."""
        # blocks that wait in host memory are bound by the bus, and their weights change places under a program
        return self._compiler is not None and not (self.form and self.form.streamed)

    def prepare(self) -> Iterator[float]:
        """Compile what requests will run; yields the share that is done, from 0 to 1. What fails is left uncompiled."""
        if self._compiler is None or not self.is_compiled:
            return
        paths = dict.fromkeys(self.precision_for(go_fast=go_fast) for go_fast in (True, False))
        for done, precision in enumerate(paths):
            model = self._loaded_model(precision)
            model.choice.quantized = precision.is_quantized
            for share in model.compile_blocks(self._compiler, self.folder.sequence_length, precision.dtype):
                yield (done + share) / len(paths)

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

    def read_ahead(self, adapter: AdapterUse, precision: Precision) -> bool:
        """Whether a LoRA is in host memory, so that `place_adapters` costs a copy; if not, another thread reads it now.

        Only where copies run beside steps: on a CPU the reading would take the steps' time.
        """
        slots = self._loaded_model(precision).slots
        if not slots.uploads.are_beside or slots.memory.has(adapter.sha256):
            return slots.uploads.are_beside
        slots.memory.read_ahead(adapter)
        return False

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

    def make_current(self) -> None:
        """Let the calling thread compute on this engine's device: to be called once by the thread that owns it."""
        make_current(self.device)
        self._team.take_short_turns()

    def start_timing(self) -> Timing:
        """Begin to time what the device works from now on: the call that comes back waits for it, and gives seconds."""
        return start_timing(self.device)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked."""
        synchronize(self.device)

    def release_memory(self) -> None:
        """Give back what was only kept to save time: embeddings of earlier prompts, and free blocks of the device."""
        self.forget_prompts()
        release_memory(self.device)

    def is_alive(self) -> bool:
        """Whether the device still computes. Once it does not, nothing but another process brings it back."""
        return is_alive(self.device)

    def begin(self, job: Job, prompt: PromptEmbedding, slots: tuple[SlotUse, ...] = ()) -> list[Drawing]:
        """The drawings of a job before their first step, one an output; output i has the job's seed plus i."""
        grid = self.folder.token_grid(job.spec.size)
        seeds = [output_seed(job.seed, index) for index in range(job.spec.num_outputs)]
        return [begin_drawing(prompt, seed, job.spec.steps, grid, slots) for seed in seeds]

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        """Take drawings of one token grid a step further, whatever their prompts, seeds, timesteps and LoRAs."""
        (model := self._loaded_model(precision)).choice.quantized = precision.is_quantized
        with self._team.stepping():
            return model.step(drawings)

    def decode(self, drawings: Sequence[Drawing], precision: Precision, *, tiles: bool = False) -> list[Image.Image]:
        """Pictures of finished drawings of one token grid, at the size they were drawn at.

        With `tiles`, and where the memory plan says so, it is done in strips, in a fraction of the memory; pixels are
        the same but for rounding.

        Raises:
            GenerationFailedError: latents hold NaN or infinity.
        """
        for drawing in drawings:
            # NaN would decode to a black picture, which looks like a result
            if not torch.isfinite(drawing.latents).all():
                raise GenerationFailedError(
                    "the model's output is not a number; try without go_fast or another LoRA scale"
                )
        planned = self.decodes_in_tiles(drawings[0].grid)
        return decode_latents(self._loaded_model(precision).networks.vae, drawings, tiles=tiles or planned)

    def finish(self, job: Job, index: int, drawn: Image.Image, watch: Stopwatch) -> GeneratedImage | None:
        """Resample one drawn picture to its exact size, check it, mark it, encode its file and sign it.

        None: it was flagged as unsafe. `index` is the output's place in the job; `watch` is given the seconds of each.
        """
        with watch.timing("resample"):
            picture = fit_to_size(drawn, job.spec.size, self.folder.draw_scale)
        with watch.timing("safety"):
            if job.spec.safety_checker and self._safety is not None and self._safety.flags(drawn):
                return None
        receipt = self._receipt(job, index)
        with watch.timing("mark"):
            picture, mark = self._proof.mark(picture, receipt)
        with watch.timing("encode"):
            data = encode_image(picture, receipt)
        with watch.timing("sign"):
            data, manifest = self._proof.sign(data, receipt, with_prompt=job.spec.credentials_prompt)
        return GeneratedImage(
            index=index,
            seed=receipt.seed,
            data=data,
            media_type=MEDIA_TYPES[receipt.output_format],
            width=picture.width,
            height=picture.height,
            receipt=receipt.to_json(),
            mark=mark,
            manifest=manifest,
        )

    def warnings_for(self, job: Job, prompt: PromptEmbedding) -> tuple[str, ...]:
        """What the caller should know about how the prompt was read and in which arithmetic the picture was drawn."""
        used, warnings = self.precision_for(go_fast=job.spec.go_fast), []
        if prompt.was_truncated:
            read = f"the {self.folder.sequence_length} tokens that {self.folder.name} reads"
            warnings.append(f"the prompt is longer than {read}: its end was ignored")
        warnings += [prompt.warning] if prompt.warning else []
        if used.is_quantized and not job.spec.go_fast:
            warnings.append(
                f"go_fast was off, but this server has room for {used.name} only: that is what was drawn in"
            )
        return (*warnings, *self.adapter_warnings(job.adapters, used))

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
            mark=self._proof.scheme if spec.watermark else None,
        )

    def _loaded_model(self, precision: Precision) -> LoadedModel:
        with _LOADING:
            if precision.dtype not in self._loaded:
                self._loaded[precision.dtype] = self._load(precision)
            return self._loaded[precision.dtype]

    def _load(self, precision: Precision) -> LoadedModel:
        choice = PathChoice()
        try:
            networks = self._load_networks(precision, choice)
            self._choose_attention(networks.transformer.params)
            return LoadedModel(networks, self.folder, self._slot_plan(precision), self._adapter_bytes, choice)
        except (RuntimeError, MemoryError) as error:
            # a picture that is told to be too large would be the wrong advice
            if is_out_of_memory(error):
                raise ModelFolderError(f"{self.folder.name} does not fit into the memory of {self.device}") from error
            raise

    def _choose_attention(self, params: FluxParams) -> None:
        if self.device.type != "cuda":
            return
        from schnell.engine.attention_kernels import use_fastest_attention

        # at a megapixel's size, where attention takes a third of a step
        tokens = self.folder.sequence_length + _MEASURED_TOKENS
        use_fastest_attention(self.device, params.num_heads, params.head_dim, tokens)

    def _load_networks(self, precision: Precision, choice: PathChoice) -> Networks:
        if self.form is None:
            return load_networks(self.folder.path, precision, self.device)
        return PlannedLoading(self.folder, self.form, self.device, self._files).load(precision, choice)

    def _slot_plan(self, precision: Precision) -> SlotPlan:
        return SlotPlan(
            count=self.adapter_slots + 1,  # slot 0 is no LoRA
            rank=self._adapter_rank,
            dtype=precision.dtype,
            device=self.device,
            # a compiled network must not meet another shape; on a CPU nobody else minds
            reserved=self.device.type != "cpu" or self._compiler is not None,
            # what it saves are passes over a GPU's memory; a CPU's programs are made for tests
            widened=self.device.type == "cuda" and self.is_compiled,
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
        # a GPU has only been asked so far: without waiting, its seconds would count for the stage after
        engine.synchronize()
    with watch.timing("noise"):
        drawings = engine.begin(job, prompt, slots)
    for step in range(job.spec.steps):
        on_progress(Progress("denoise", step, job.spec.steps))
        with watch.timing("denoise"):
            drawings = engine.step(drawings, precision)
            engine.synchronize()
    on_progress(Progress("decode", job.spec.steps, job.spec.steps))
    with watch.timing("decode"):
        pictures = engine.decode(drawings, precision)
    finished = [engine.finish(job, index, picture, watch) for index, picture in enumerate(pictures)]
    return JobOutcome.of(finished, engine.warnings_for(job, prompt), watch.seconds)
