"""OpenAI's image events: partial pictures while FLUX denoises, and each picture when it is done."""

import base64
from typing import Any, Final

from schnell.generations import Record

#: The service counts credits, not tokens; the field must be there for typed clients.
_NO_TOKENS: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


def choose_steps(steps: int, partial_images: int) -> set[int]:
    """After which of `steps` denoising steps to show `partial_images` previews: spread evenly, never after the last."""
    spread = {round(index * steps / (partial_images + 1)) for index in range(1, partial_images + 1)}
    return {step for step in spread if 1 <= step < steps}


def partial_event(record: Record, preview: bytes, index: int) -> dict[str, Any]:
    """A preview (PNG) on the way. `index` counts the moments that are shown, from 0."""
    return {
        "type": "image_generation.partial_image",
        "b64_json": base64.b64encode(preview).decode(),
        "partial_image_index": index,
    } | _about(record, "png")


def completed_event(record: Record, picture: str) -> dict[str, Any]:
    """A finished picture, in base64."""
    return {"type": "image_generation.completed", "b64_json": picture, "usage": _NO_TOKENS} | _about(
        record, record.settings["output_format"]
    )


def _about(record: Record, output_format: str) -> dict[str, Any]:
    return {
        "created_at": int(record.created_at.timestamp()),
        "background": "opaque",
        "output_format": output_format,
        "quality": "auto",
        "size": f"{record.settings['width']}x{record.settings['height']}",
    }
