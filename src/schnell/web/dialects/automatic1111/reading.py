"""What a request of the web UI's clients says: numbers brought into FLUX's range, and LoRAs as tags in the prompt.

`<lora:NAME:SCALE>` names a LoRA; `<lyco:NAME:SCALE>` is another spelling of it.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from schnell.errors import FieldProblem, InvalidFieldError
from schnell.loras.references import MAX_REFERENCE_LENGTH
from schnell.spec import (
    DEFAULT_SIDE,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_OUTPUTS,
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_LORA_SCALE,
    MIN_SIDE,
    TOKEN_SIDE,
    LoraRef,
    combine_loras,
)
from schnell.web.dialects.translation import SWITCHES
from schnell.web.fields import Fields
from schnell.web.native.lora_names import LORA_KEYS
from schnell.web.native.prompt_object import name_unknown_fields

_DEFAULT_SIDE: Final = 512  # the web UI's own
_NAMES: Final = ("width", "height", "steps", "batch_size", "n_iter", "seed")
_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,16}(?:\.[0-9]{0,16})?")


def without_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with numbers where they hold text that spells one: the web UI takes "20", and clients send it."""
    found = dict(values)
    for name in _NAMES:
        text = found.get(name)
        if isinstance(text, str) and _NUMBER.fullmatch(text.strip()):
            found[name] = float(text) if "." in text else int(text)
    return found


def read_numbers(fields: Fields, notes: list[str]) -> dict[str, Any]:
    """Size, steps, count and seed for a native `promptObject`, brought into FLUX's range.

    Each change is added to `notes`; values that are not numbers are noted in `fields`.
    """
    return {
        "aspect_ratio": "custom",
        "width": _read_side(fields, "width", notes),
        "height": _read_side(fields, "height", notes),
        "num_inference_steps": _clamp(fields, "steps", (1, MAX_STEPS), notes, example=MAX_STEPS) or MAX_STEPS,
        "num_outputs": _read_count(fields, notes),
        "seed": _read_seed(fields, notes),
    }


def _clamp(fields: Fields, name: str, limits: tuple[int, int], notes: list[str], *, example: int) -> int | None:
    asked = fields.any_number(name, example)
    if asked is None:
        return None
    value = min(max(round(asked), limits[0]), limits[1])
    if value != asked:
        notes.append(f"{name} {asked:g} became {value}: FLUX.1 [schnell] takes {limits[0]}-{limits[1]}")
    return value


def _read_side(fields: Fields, name: str, notes: list[str]) -> int:
    side = _clamp(fields, name, (MIN_SIDE, MAX_SIDE), notes, example=DEFAULT_SIDE) or _DEFAULT_SIDE
    nearest = round(side / TOKEN_SIDE) * TOKEN_SIDE
    if nearest != side:
        notes.append(f"{name} {side} became {nearest}: sides are multiples of {TOKEN_SIDE}")
    return nearest


def _read_count(fields: Fields, notes: list[str]) -> int:
    asked = 1
    for name in ("batch_size", "n_iter"):
        asked *= _read_factor(fields, name, notes)
    if asked > MAX_OUTPUTS:
        notes.append(f"{asked} pictures became {MAX_OUTPUTS}: ask again for more")
    return min(asked, MAX_OUTPUTS)


def _read_factor(fields: Fields, name: str, notes: list[str]) -> int:
    asked = fields.any_number(name, 1)
    if asked is None:
        return 1
    value = max(1, round(asked))
    # what is too large is told of the product
    if value != asked:
        notes.append(f"{name} {asked:g} became {value}: pictures are counted from 1")
    return value


def _read_seed(fields: Fields, notes: list[str]) -> int | None:
    # -1 asks for a random seed in the web UI
    seed = fields.any_whole("seed", -1)
    if seed is None or seed < 0:
        return None
    if seed > MAX_SEED:
        notes.append(f"seed {seed} became {seed % (MAX_SEED + 1)}: seeds have 32 bits")
    return seed % (MAX_SEED + 1)


#: Those of `StableDiffusionTxt2ImgProcessingAPI` in the web UI 1.10 and before, of its fork Forge, and `clip_skip`,
#: which SillyTavern sends.
_WEB_UI: Final = (
    *("prompt", "negative_prompt", "styles", "seed", "subseed", "subseed_strength", "seed_resize_from_h"),
    *("seed_resize_from_w", "seed_enable_extras", "sampler_name", "sampler_index", "scheduler", "batch_size", "n_iter"),
    *("steps", "cfg_scale", "distilled_cfg_scale", "width", "height", "restore_faces", "tiling", "eta", "clip_skip"),
    *("do_not_save_samples", "do_not_save_grid", "denoising_strength", "s_min_uncond", "s_churn", "s_tmax", "s_tmin"),
    *("s_noise", "override_settings", "override_settings_restore_afterwards", "refiner_checkpoint"),
    *("refiner_switch_at", "disable_extra_networks", "firstpass_image", "comments", "firstphase_width"),
    *("firstphase_height", "script_name", "script_args", "alwayson_scripts", "send_images", "save_images"),
    *("force_task_id", "infotext", "include_init_images"),
)
_HIGH_RESOLUTION: Final = (
    *("enable_hr", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"),
    *("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg"),
    *("hr_distilled_cfg", "hr_additional_modules"),
)
#: Names that are not among these are told to the client: others are sent by all of them, useful or not.
_KNOWN_FIELDS: Final = (*_WEB_UI, *_HIGH_RESOLUTION, *LORA_KEYS, *SWITCHES)


def name_unknown(fields: Fields) -> list[str]:
    """A note for every field that is neither the web UI's nor ours."""
    return name_unknown_fields(fields.names, _KNOWN_FIELDS)


_TAG: Final = re.compile(rf"<(lora|lyco):([^<>]{{1,{MAX_REFERENCE_LENGTH + 100}}})>", re.IGNORECASE)
#: A whole prompt, and its longest possible tags.
_MAX_TAGGED_PROMPT: Final = MAX_PROMPT_LENGTH + MAX_LORAS * (MAX_REFERENCE_LENGTH + 140)
_WEIGHTS: Final = re.compile(
    r"(?::(?:(?:te|unet)=)?[-+]?(?:[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9})){1,3}$", re.IGNORECASE
)


def read_lora_tags(prompt: str, notes: list[str]) -> tuple[str, tuple[LoraRef, ...]]:
    """The prompt without its tags, and the LoRAs that they name, at scale 1 where none is given.

    A LoRA that is named twice is one, its scales added. What a tag asks for and FLUX cannot do is added to `notes`.

    Raises:
        InvalidFieldError: the prompt is longer than any that could be drawn, or names more than eight LoRAs.
    """
    # before anything is parsed: a body full of tags must cost nothing
    if len(prompt) > _MAX_TAGGED_PROMPT:
        problem = f"must have at most {MAX_PROMPT_LENGTH} characters beside its LoRA tags, got {len(prompt)} with them"
        raise InvalidFieldError(FieldProblem("prompt", problem))
    loras = combine_loras(_read_tag(match[1].lower(), match[2], notes) for match in _TAG.finditer(prompt))
    if len(loras) > MAX_LORAS:
        problem = f"may name {MAX_LORAS} LoRAs at most, got {len(loras)}"
        raise InvalidFieldError(FieldProblem("prompt", problem))
    return " ".join(_TAG.sub(" ", prompt).split()) if loras else prompt, loras


def _read_tag(kind: str, text: str, notes: list[str]) -> LoraRef:
    if kind == "lyco":
        notes.append(f"<lyco:{text}> is read as <lora:{text}>: both kinds of files are LoRAs here")
    match = _WEIGHTS.search(text)
    if match is None:
        return LoraRef(text.strip(), 1.0, "prompt")
    name = text[: match.start()].strip()
    weights = [float(part.rpartition("=")[2]) for part in match[0][1:].split(":")]
    if len(weights) > 1:
        # the web UI has one strength for the text encoder and one for the U-Net
        notes.append(f"<lora:{text}>: one strength counts for the whole LoRA here, {weights[0]:g}")
    scale = min(max(weights[0], MIN_LORA_SCALE), MAX_LORA_SCALE)
    if scale != weights[0]:
        notes.append(
            f"<lora:{text}>: the strength became {scale:g}, it may be {MIN_LORA_SCALE:g} to {MAX_LORA_SCALE:g}"
        )
    return LoraRef(name, scale, "prompt")
