"""Sizes, steps, counts and seeds of the web UI's clients, brought into FLUX's range."""

import re
from collections.abc import Mapping
from typing import Any, Final

from schnell.spec import MAX_OUTPUTS, MAX_SEED, MAX_SIDE, MAX_STEPS, MIN_SIDE, TOKEN_SIDE
from schnell.web.fields import Fields

#: Numbers up to this size are brought into range; larger ones are refused.
_MAX_CLAMPED: Final = 2**40
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
        "num_inference_steps": _clamp(fields, "steps", (1, MAX_STEPS), notes) or MAX_STEPS,
        "num_outputs": _read_count(fields, notes),
        "seed": _read_seed(fields, notes),
    }


def _clamp(fields: Fields, name: str, limits: tuple[int, int], notes: list[str]) -> int | None:
    asked = fields.number(name, -_MAX_CLAMPED, _MAX_CLAMPED)
    if asked is None:
        return None
    value = min(max(round(asked), limits[0]), limits[1])
    if value != asked:
        notes.append(f"{name} {asked:g} became {value}: FLUX.1 [schnell] takes {limits[0]}-{limits[1]}")
    return value


def _read_side(fields: Fields, name: str, notes: list[str]) -> int:
    side = _clamp(fields, name, (MIN_SIDE, MAX_SIDE), notes) or _DEFAULT_SIDE
    nearest = round(side / TOKEN_SIDE) * TOKEN_SIDE
    if nearest != side:
        notes.append(f"{name} {side} became {nearest}: sides are multiples of {TOKEN_SIDE}")
    return nearest


def _read_count(fields: Fields, notes: list[str]) -> int:
    asked = 1
    for name in ("batch_size", "n_iter"):
        asked *= max(1, round(fields.number(name, -_MAX_CLAMPED, _MAX_CLAMPED) or 1))
    if asked > MAX_OUTPUTS:
        notes.append(f"{asked} pictures became {MAX_OUTPUTS}: ask again for more")
    return min(asked, MAX_OUTPUTS)


def _read_seed(fields: Fields, notes: list[str]) -> int | None:
    # -1 asks for a random seed in the web UI
    seed = fields.whole("seed", -_MAX_CLAMPED, _MAX_CLAMPED)
    if seed is None or seed < 0:
        return None
    if seed > MAX_SEED:
        notes.append(f"seed {seed} became {seed % (MAX_SEED + 1)}: seeds have 32 bits")
    return seed % (MAX_SEED + 1)
