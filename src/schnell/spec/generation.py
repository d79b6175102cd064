"""What a request asks for, independent of the API that it came in by, and the limits of each value."""

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from schnell.errors import FieldProblem, InvalidFieldError, MissingFieldError
from schnell.spec.size import ASPECT_RATIOS, TOKEN_SIDE, Size, side_problem

MAX_PROMPT_LENGTH: Final = 4_000
MAX_STEPS: Final = 4  # FLUX.1 [schnell] is distilled for one to four
MAX_SEED: Final = 2**32 - 1
MAX_QUALITY: Final = 100
MAX_OUTPUTS: Final = 4
#: LoRAs of one request. Each takes a slot of the engine for as long as the request is drawn.
MAX_LORAS: Final = 8
MIN_LORA_SCALE: Final = -1.0
MAX_LORA_SCALE: Final = 3.0
#: The reference document's.
DEFAULT_LORA_SCALE: Final = 0.8

OutputFormat = Literal["webp", "jpeg", "png"]
_FORMAT_NAMES: Final[dict[str, OutputFormat]] = {"webp": "webp", "jpg": "jpeg", "jpeg": "jpeg", "png": "png"}


@dataclass(frozen=True, slots=True)
class LoraRef:
    """A LoRA as the caller names it, and its scale: the factor on its weights, 1 as it was trained.

    `place` is the field where the caller named it, for error messages; it makes no LoRA another one.
    """

    reference: str
    scale: float = DEFAULT_LORA_SCALE
    place: str = field(default="lora_weights", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """Everything that decides the pictures of one request. `seed` None asks for a random one.

    `steps` counts denoising steps. `output_quality` is the encoder's, 0 to 100. `go_fast` asks for faster, less exact
    arithmetic where the hardware has it. Output i of `num_outputs` is drawn with `output_seed(seed, i)`. `watermark`
    lets the pictures be marked invisibly, if the engine marks at all; `credentials_prompt` lets the prompt into their
    signed credentials.

    Raises:
        InvalidFieldError: naming every field that is out of range, as the API calls it.
        MissingFieldError: an empty prompt.
    """

    prompt: str
    size: Size = ASPECT_RATIOS["1:1"]
    steps: int = 4
    seed: int | None = None
    num_outputs: int = 1
    output_format: OutputFormat = "webp"
    output_quality: int = 80
    go_fast: bool = True
    safety_checker: bool = True
    loras: tuple[LoraRef, ...] = ()
    watermark: bool = True
    credentials_prompt: bool = True

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise MissingFieldError(FieldProblem("prompt", "is required: say what to draw"))
        problems = tuple(self._problems())
        if problems:
            raise InvalidFieldError(*problems)

    def _problems(self) -> Iterator[FieldProblem]:
        if len(self.prompt) > MAX_PROMPT_LENGTH:
            yield FieldProblem("prompt", f"must have at most {MAX_PROMPT_LENGTH} characters, got {len(self.prompt)}")
        for name, side in (("width", self.size.width), ("height", self.size.height)):
            if problem := side_problem(name, side, TOKEN_SIDE):
                yield problem
        yield from _range_problem("num_inference_steps", self.steps, 1, MAX_STEPS)
        if self.seed is not None:
            yield from _range_problem("seed", self.seed, 0, MAX_SEED)
        yield from _range_problem("num_outputs", self.num_outputs, 1, MAX_OUTPUTS)
        yield from _range_problem("output_quality", self.output_quality, 0, MAX_QUALITY)
        if len(self.loras) > MAX_LORAS:
            yield FieldProblem("lora_weights", f"a request may name {MAX_LORAS} LoRAs at most, got {len(self.loras)}")
        for lora in self.loras:
            yield from _range_problem("lora_scale", lora.scale, MIN_LORA_SCALE, MAX_LORA_SCALE)


def _range_problem(field: str, value: float, low: float, high: float) -> Iterator[FieldProblem]:
    # digits enough for seeds: `g` alone would write 4294967295 as 4.29497e+09
    if not low <= value <= high:
        yield FieldProblem(field, f"must be {low:.10g}-{high:.10g}, got {value:.15g}")


def combine_loras(loras: Iterable[LoraRef]) -> tuple[LoraRef, ...]:
    """LoRAs in the order in which they are first named; one that is named twice is one, its scales added.

    A sum outside the range of scales is cut to it.
    """
    combined: dict[str, LoraRef] = {}
    for lora in loras:
        known = combined.get(lora.reference)
        combined[lora.reference] = lora if known is None else replace(known, scale=known.scale + lora.scale)
    return tuple(
        replace(lora, scale=min(max(lora.scale, MIN_LORA_SCALE), MAX_LORA_SCALE)) for lora in combined.values()
    )


def random_seed() -> int:
    """A seed for a request that names none: uniform over 0 to 2^32 - 1."""
    return secrets.randbits(32)


def output_seed(seed: int, index: int) -> int:
    """The seed of output `index` (from 0): `seed + index` modulo 2^32, so that each can be drawn again by itself."""
    return (seed + index) % (MAX_SEED + 1)


def output_format_named(name: str) -> OutputFormat:
    """The format that a name or file ending stands for, in any case; `jpg` is `jpeg`.

    Raises:
        InvalidFieldError: the name is not webp, jpg, jpeg or png.
    """
    found = _FORMAT_NAMES.get(name.lower())
    if found is None:
        raise InvalidFieldError(
            FieldProblem("output_format", f"must be one of {', '.join(_FORMAT_NAMES)}, got {name!r}")
        )
    return found
