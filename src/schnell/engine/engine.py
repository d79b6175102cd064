"""One model on one device: each stage of a picture as one call, and `generate`, which strings them together."""

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import torch
from PIL import Image

from schnell.engine.decode import decode_latents, fit_to_size
from schnell.engine.denoise import Drawing, begin_drawing, denoise_step
from schnell.engine.image_file import MEDIA_TYPES, encode_image
from schnell.engine.networks import Networks, load_networks
from schnell.engine.precision import Precision, choose_precision
from schnell.engine.prompt_cache import PromptCache
from schnell.engine.receipt import AdapterReceipt, Receipt
from schnell.engine.safety import SafetyChecker
from schnell.engine.stopwatch import Stopwatch
from schnell.engine.text import PromptEmbedding, TextEncoder
from schnell.engine.version import ENGINE_VERSION
from schnell.errors import GenerationFailedError
from schnell.models.fingerprint import weights_sha256
from schnell.models.folder import ModelFolder
from schnell.spec import GeneratedImage, Job, JobOutcome, Progress, ProgressListener, output_seed

_PROMPT_CACHE_BYTES: Final = 256 << 20


class Engine:
    """Owns the weights of one model. Networks of a precision are loaded when it is first asked for."""

    def __init__(self, folder: ModelFolder, device: torch.device, safety: SafetyChecker | None = None) -> None:
        self.folder = folder
        self.device = device
        self._safety = safety
        self._loaded: dict[Precision, tuple[Networks, TextEncoder]] = {}
        self._load_lock = threading.Lock()
        self._prompts = PromptCache(_PROMPT_CACHE_BYTES)

    @cached_property
    def model_sha256(self) -> str:
        """The hash of the transformer's weights."""
        return weights_sha256(self.folder.path)

    def precision_for(self, *, go_fast: bool) -> Precision:
        """The precision in which a request with this switch runs."""
        return choose_precision(self.device, go_fast=go_fast)

    def load(self, precision: Precision) -> None:
        """Make the networks of a precision ready, so that the first picture does not wait for them."""
        self._networks(precision)

    def encode_prompts(self, prompts: Sequence[str], precision: Precision) -> list[PromptEmbedding]:
        """Embeddings of these prompts; those not in the cache go through both text encoders in one batch."""
        new = [prompt for prompt in dict.fromkeys(prompts) if self._prompts.get((prompt, precision)) is None]
        fresh = dict(zip(new, self._part(precision)[1].encode(new), strict=True)) if new else {}
        found = [fresh.get(prompt) or self._prompts.get((prompt, precision)) for prompt in prompts]
        for prompt, embedding in fresh.items():
            self._prompts.put((prompt, precision), embedding)
        return [embedding for embedding in found if embedding is not None]

    def begin(self, job: Job, prompt: PromptEmbedding) -> list[Drawing]:
        """The drawings of a job before their first step, one an output."""
        grid = self.folder.token_grid(job.spec.size)
        seeds = [output_seed(job.seed, index) for index in range(job.spec.num_outputs)]
        return [begin_drawing(prompt, seed, job.spec.steps, grid) for seed in seeds]

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        """Take drawings of one token grid a step further, whatever their prompts, seeds and timesteps."""
        return denoise_step(self._networks(precision).transformer, drawings)

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
        return decode_latents(self._networks(precision).vae, drawings)

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

    def _networks(self, precision: Precision) -> Networks:
        return self._part(precision)[0]

    def _part(self, precision: Precision) -> tuple[Networks, TextEncoder]:
        with self._load_lock:
            if precision not in self._loaded:
                networks = load_networks(self.folder.path, precision, self.device)
                text = TextEncoder(self.folder.path, self.folder.sequence_length, networks.clip, networks.t5)
                self._loaded[precision] = (networks, text)
            return self._loaded[precision]


def generate(engine: Engine, job: Job, on_progress: ProgressListener) -> JobOutcome:
    """One job alone, from prompt to files: the whole path of a request on one screen."""
    watch = Stopwatch()
    precision = engine.precision_for(go_fast=job.spec.go_fast)
    with watch.timing("load"):
        engine.load(precision)
    on_progress(Progress("text"))
    with watch.timing("text"):
        prompt = engine.encode_prompts([job.spec.prompt], precision)[0]
    drawings = engine.begin(job, prompt)
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
