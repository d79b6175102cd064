"""OpenAI's `size`: `auto`, or WIDTHxHEIGHT."""

import re
from collections.abc import Mapping
from typing import Any, Final

from schnell.web.fields import Fields

_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
#: Sizes of OpenAI's own models that FLUX cannot draw, which clients have built in: the same shape at one megapixel.
_STANDARD_SIZES: Final = {"1536x1024": "3:2", "1024x1536": "2:3", "1792x1024": "16:9", "1024x1792": "9:16"}


def read_size(fields: Fields) -> Mapping[str, Any]:
    """The size for a native `promptObject`: nothing where the client leaves it to the model."""
    size = fields.text("size")
    if size in {None, "", "auto"}:
        return {}
    if size in _STANDARD_SIZES:
        return {"aspect_ratio": _STANDARD_SIZES[size], "megapixels": "1"}
    match = _SIZE.fullmatch(size or "")
    if match is None:
        fields.refuse("size", f'must be "auto" or WIDTHxHEIGHT, such as 1024x1024, got {(size or "")[:50]!r}')
        return {}
    return {"aspect_ratio": "custom", "width": int(match[1]), "height": int(match[2])}
