"""Numbers that suit other models, brought into FLUX's range; what changed is noted."""

from typing import Any, Final

from schnell.spec import (MAX_OUTPUTS, MAX_SEED, MAX_SIDE, MAX_STEPS, MIN_SIDE, SIDE_STEP)
from schnell.web.fields import Fields

_DEAF: Final = (
    "negative_prompt",
    "enable_hr",
    "styles",
    "restore_faces",
    "tiling",
    "refiner_checkpoint",
    "script_name",
)
#: What FLUX.1 [schnell] always does: asking for it, or for nothing, needs no note.
_FIXED: Final[dict[str, tuple[Any, ...]]] = {
    "cfg_scale": (1,),
    "sampler_name": ("Euler", "euler"),
    "sampler_index": ("Euler", "euler"),
    "scheduler": ("simple", "Simple", "automatic", "Automatic"),
}
_WIDEST: Final = 2**40
_DEFAULT_SIDE: Final = 512


def read_numbers(fields: Fields, notes: list[str]) -> dict[str, Any]:
    """Size, steps, count and seed for a native `promptObject`. What is no number is noted in `fields`."""
    return {
        "aspect_ratio": "custom",
        "width": _read_side(fields, "width", notes),
        "height": _read_side(fields, "height", notes),
        "num_inference_steps": _clamp(fields, "steps", (1, MAX_STEPS), notes) or MAX_STEPS,
        "num_outputs": _read_count(fields, notes),
        "seed": _read_seed(fields, notes),
    }


def read_deaf(fields: Fields) -> list[str]:
    """A note for every value that FLUX cannot follow."""
    notes = [f"{name} has no effect with FLUX" for name in _DEAF if fields.raw(name)]
    for name, values in _FIXED.items():
        asked = fields.raw(name)
        if asked and asked not in values:
            notes.append(f"{name} {str(asked)[:50]} became {values[0]}: FLUX.1 [schnell] has no other")
    return notes


def _clamp(fields: Fields, name: str, limits: tuple[int, int], notes: list[str]) -> int | None:
    asked = fields.number(name, -_WIDEST, _WIDEST)
    if asked is None:
        return None
    value = min(max(round(asked), limits[0]), limits[1])
    if value != asked:
        notes.append(f"{name} {asked:g} became {value}: FLUX.1 [schnell] takes {limits[0]}-{limits[1]}")
    return value


def _read_side(fields: Fields, name: str, notes: list[str]) -> int:
    side = _clamp(fields, name, (MIN_SIDE, MAX_SIDE), notes) or _DEFAULT_SIDE
    nearest = round(side / SIDE_STEP) * SIDE_STEP
    if nearest != side:
        notes.append(f"{name} {side} became {nearest}: sides are multiples of {SIDE_STEP}")
    return nearest


def _read_count(fields: Fields, notes: list[str]) -> int:
    asked = 1
    for name in ("batch_size", "n_iter"):
        asked *= max(1, round(fields.number(name, -_WIDEST, _WIDEST) or 1))
    if asked > MAX_OUTPUTS:
        notes.append(f"{asked} pictures became {MAX_OUTPUTS}: ask again for more")
    return min(asked, MAX_OUTPUTS)


def _read_seed(fields: Fields, notes: list[str]) -> int | None:
    seed = fields.whole("seed", -_WIDEST, _WIDEST)
    if seed is None or seed < 0:
        return None
    if seed > MAX_SEED:
        notes.append(f"seed {seed} became {seed % (MAX_SEED + 1)}: seeds have 32 bits")
    return seed % (MAX_SEED + 1)
