"""`promptObject`: the reference document's fields and their values, whichever dialect they came in.

What can be drawn is drawn: a name that is no field is ignored and named in a warning. A known field with a wrong value
is refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Literal

from schnell.spec import (
    ASPECT_RATIOS,
    CUSTOM_RATIO,
    DEFAULT_SIDE,
    MAX_OUTPUTS,
    MAX_QUALITY,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MEGAPIXELS,
    MIN_SIDE,
    SIDE_STEP,
    GenerationSpec,
    LoraRef,
    combine_loras,
    output_format_named,
    resolve_size,
)
from schnell.web.fields import Fields
from schnell.web.native.lora_names import LORA_KEYS, echo_loras, read_loras

_RATIOS: Final = (*ASPECT_RATIOS, CUSTOM_RATIO)
_FORMATS: Final = ("webp", "jpg", "jpeg", "png")
#: Names under which clients of several APIs send the number of pictures; the first that is given counts.
_COUNT_NAMES: Final = ("num_outputs", "n", "numImages", "samples")
#: The keys of `promptObject`, which records echo in the order of the document's example: short names first.
KNOWN_KEYS: Final = tuple(
    sorted(
        (
            *("prompt", "aspect_ratio", "num_inference_steps", "seed", "output_quality", "output_format"),
            *("disable_safety_checker", "disable_watermark", "hide_prompt", "go_fast", "megapixels", "width", "height"),
            *_COUNT_NAMES,
            *LORA_KEYS,
        ),
        key=lambda name: (len(name), name),
    )
)
#: What other services call a field of ours, where the two names are not alike.
_SYNONYMS: Final = {
    "size": "aspect_ratio",
    "imagesize": "aspect_ratio",
    "steps": "num_inference_steps",
    "quality": "output_quality",
    "format": "output_format",
    "lora": "lora_weights",
    "loraname": "lora_weights",
    "lorastrength": "lora_scale",
    "count": "num_outputs",
    "batchsize": "num_outputs",
    "disablesafety": "disable_safety_checker",
    "enablesafetychecker": "disable_safety_checker",
}
_MOST_UNKNOWN: Final = 10
_LONGEST_NAME: Final = 60
_MOST_WARNINGS: Final = 40
_LONGEST_WARNING: Final = 400


@dataclass(frozen=True, slots=True)
class PromptRules:
    """Where other APIs are more generous than the reference document.

    `lowest_scale` is the least LoRA scale. Custom sides are multiples of `side_step`; others are brought onto it by
    `rounding`, as the API's original does, or refused without it. `ratios` are named to whoever sends another; those
    that are not native are custom sizes by then.
    """

    lowest_scale: float = 0.0
    side_step: int = SIDE_STEP
    rounding: Literal["nearest", "down"] | None = None
    ratios: tuple[str, ...] = _RATIOS


DOCUMENT_RULES: Final = PromptRules()


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """What to draw; what was asked for and is not done, in words; and the known fields as they were sent."""

    spec: GenerationSpec
    warnings: tuple[str, ...]
    echo: Mapping[str, Any]


def parse_prompt_object(
    values: Mapping[str, Any], rules: PromptRules = DOCUMENT_RULES, loras: tuple[LoraRef, ...] = ()
) -> ParsedPrompt:
    """What to draw, from a `promptObject`. `loras` are drawn besides those that it names.

    Raises:
        MissingFieldError, InvalidFieldError: naming every field that is missing or wrong.
    """
    fields = Fields(values)
    warnings = name_unknown_fields(values)
    prompt = fields.text("prompt", required=True)
    ratio = fields.choice("aspect_ratio", rules.ratios)
    sides = {name: _read_side(fields, name, rules, warnings) for name in ("width", "height")}
    megapixels = _read_megapixels(fields)
    outputs = [fields.whole(name, 1, MAX_OUTPUTS) for name in _COUNT_NAMES]
    steps = fields.whole("num_inference_steps", 1, MAX_STEPS)
    seed = fields.whole("seed", 0, MAX_SEED)
    quality = fields.whole("output_quality", 0, MAX_QUALITY)
    file_format = fields.choice("output_format", _FORMATS)
    go_fast = fields.flag("go_fast", default=True)
    unchecked = fields.flag("disable_safety_checker", default=False)
    unmarked = fields.flag("disable_watermark", default=False)
    hides_prompt = fields.flag("hide_prompt", default=False)
    named = read_loras(fields, rules.lowest_scale, warnings)
    if ratio != CUSTOM_RATIO:
        _require_both(fields, sides)
    if ratio is None:
        ratio = CUSTOM_RATIO if any(sides.values()) else "1:1"
    fields.check()
    if ratio == CUSTOM_RATIO:
        warnings += [f"{name} is {DEFAULT_SIDE}: it was not given" for name, side in sides.items() if side is None]
    spec = GenerationSpec(
        prompt=prompt or "",
        size=resolve_size(ratio, megapixels, **sides, side_step=rules.side_step),
        steps=MAX_STEPS if steps is None else steps,
        seed=seed,
        num_outputs=next((count for count in outputs if count), 1),
        output_format=output_format_named(file_format or "webp"),
        output_quality=80 if quality is None else quality,
        go_fast=go_fast,
        safety_checker=not unchecked,
        loras=combine_loras((*loras, *named)),
        watermark=not unmarked,
        credentials_prompt=not hides_prompt,
    )
    echo = {name: values[name] for name in KNOWN_KEYS if values.get(name) is not None}
    return ParsedPrompt(spec, tuple(warnings), echo_loras(echo))


def _read_side(fields: Fields, name: str, rules: PromptRules, warnings: list[str]) -> int | None:
    asked = fields.whole(name, MIN_SIDE, MAX_SIDE)
    step = rules.side_step
    if asked is None or rules.rounding is None or asked % step == 0:
        return asked
    lower = asked // step * step
    rounded = lower if rules.rounding == "down" or asked - lower < step / 2 else lower + step
    warnings.append(f"{name} {asked} became {rounded}: sides are multiples of {step}")
    return rounded


def _require_both(fields: Fields, sides: Mapping[str, int | None]) -> None:
    given = [name for name in sides if fields.raw(name) is not None]
    if len(given) == 1:
        fields.require("height" if given == ["width"] else "width", f"is required with {given[0]}")


def _read_megapixels(fields: Fields) -> str:
    value = fields.raw("megapixels")
    if isinstance(value, int | float) and not isinstance(value, bool) and value in {0.25, 1}:
        return f"{value:g}"  # the reference document has strings, clients send numbers too
    return fields.choice("megapixels", MEGAPIXELS) or "1"


def name_unused_sizes(values: Mapping[str, Any]) -> list[str]:
    """A warning for what a `promptObject`, as it was sent, says of the size beside what counts."""
    ratio = values.get("aspect_ratio")
    sides = [name for name in ("width", "height") if values.get(name) is not None]
    if ratio not in (None, CUSTOM_RATIO):
        return [f"{name} was ignored: aspect_ratio is {ratio}, and sides count with {CUSTOM_RATIO}" for name in sides]
    if (ratio or sides) and asks_for_less(values):
        return ["megapixels was ignored: width and height count"]
    return []


def asks_for_less(values: Mapping[str, Any]) -> bool:
    """Whether `megapixels` is given, and not the one megapixel that clients send which fill every field in."""
    return values.get("megapixels") not in (None, "1", 1)


def name_unknown_fields(
    names: Iterable[str], known: Sequence[str] = KNOWN_KEYS, *, inner: str = "", inside: Sequence[str] = ()
) -> list[str]:
    """A warning for every name that is not among `known`, with the known one that it seems to mean.

    `inside` are the fields of the object that stands beside these names and is called `inner`.
    """
    unknown = [name for name in names if name not in known]
    warnings = [
        f"{name} belongs inside {inner}; here it was ignored" if name in inside else _name_unknown(name, known)
        for name in unknown[:_MOST_UNKNOWN]
    ]
    if len(unknown) > _MOST_UNKNOWN:
        warnings.append(f"{len(unknown) - _MOST_UNKNOWN} more are not fields; they were ignored")
    return warnings


def bounded(warnings: Iterable[str]) -> tuple[str, ...]:
    """Each warning once, and no more than records and answers have room for: a body may deserve thousands."""
    return tuple(dict.fromkeys(each[:_LONGEST_WARNING] for each in warnings))[:_MOST_WARNINGS]


def _name_unknown(name: str, known: Sequence[str]) -> str:
    # cut before it is compared: a name may be as long as the body
    shown = "".join(filter(str.isprintable, name[:_LONGEST_NAME]))
    by_spelling = {_plain(each): each for each in known}
    close = get_close_matches(_plain(shown), by_spelling, n=1, cutoff=0.75)
    synonym = _SYNONYMS.get(_plain(shown))
    meant = synonym if synonym in known else (by_spelling[close[0]] if close else None)
    return f"{shown} is not a field" + (f": did you mean {meant}?" if meant else "; it was ignored")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
