"""Where a LoRA file's metadata, or PEFT's configuration beside it, contradict the use that its keys allow.

A file whose keys and sizes fit is no proof that it was made for FLUX.1: other models share its layers' names. And some
ways to begin a training change the base weights, so that the file means nothing beside those that everybody has.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from schnell.adapters.tensors import shorten

#: Fields that state an architecture in a few fixed words; in the other fields people write what they like.
_ARCHITECTURE_FIELDS: Final = ("ss_base_model_version", "modelspec.architecture")
_NAME_FIELDS: Final = ("base_model", "ss_sd_model_name", "base_model_name_or_path", "ss_base_model_name")
#: Families by what their names are written like. FLUX.1's own come first: `flux1-dev-sdxl-vae` is FLUX.1.
_FAMILIES: Final[tuple[tuple[re.Pattern[str], str | None], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), family)
    for pattern, family in (
        (r"flux[ ._-]*2|klein", "FLUX.2"),
        (r"chroma", "Chroma"),
        (r"flux[ ._-]*1|flux", None),
        (r"sdxl|stable[ ._-]*diffusion[ ._-]*xl|pony|illustrious|noobai", "SDXL"),
        (r"sd[ ._-]*3|stable[ ._-]*diffusion[ ._-]*(?:v)?3", "Stable Diffusion 3"),
        (r"sd[ ._-]*v?[12]\b|sd_v[12]|stable[ ._-]*diffusion[ ._-]*v?[12]", "Stable Diffusion"),
        (r"qwen", "Qwen-Image"),
        (r"wan[ ._-]*2|wan[ ._-]*video", "Wan"),
        (r"hunyuan", "HunyuanVideo"),
        (r"z[ ._-]*image", "Z-Image"),
        (r"lumina", "Lumina"),
        (r"hidream", "HiDream"),
        (r"aura[ ._-]*flow", "AuraFlow"),
        (r"ltx", "LTX-Video"),
        (r"pixart", "PixArt"),
        (r"cascade|wuerstchen", "Stable Cascade"),
    )
)
#: PEFT's methods whose files hold what is read here.
_READ_TYPES: Final = frozenset({"LORA", "ADALORA", "LOKR", "LOHA"})
#: Ways to begin that take a part out of the base weights and into the adapter.
_CHANGED_BASE: Final = re.compile(r"pissa(?:_niter_\d+)?|olora|corda|lora[_-]?ga|milora|loftq", re.IGNORECASE)


def find_contradiction(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> str | None:
    """Why metadata or PEFT's configuration forbid to serve the file; None if they do not."""
    for field in _ARCHITECTURE_FIELDS:
        family = _family_of(metadata.get(field, ""))
        # Chroma was made from FLUX.1 [schnell], and its LoRAs act on the same layers: warned of, not refused
        if family not in {None, "Chroma"}:
            return f"its metadata say that it was made for {family} ({field}: {shorten(metadata[field], 60)})"
    if config is None:
        return None
    kind = config.get("peft_type")
    if isinstance(kind, str) and kind.upper() not in _READ_TYPES:
        return f"PEFT's configuration says that it is {shorten(kind, 40)}, not LoRA (peft_type)"
    began = config.get("init_lora_weights")
    if isinstance(began, str) and _CHANGED_BASE.fullmatch(began):
        return (
            f"PEFT's configuration says that its training began with {shorten(began, 40)} (init_lora_weights), which "
            "changes the base weights: it is meant for those alone. Save it with PEFT's "
            "path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it"
        )
    return None


def list_doubts(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> Iterator[str]:
    """What metadata or PEFT's configuration say that makes one doubt the file, though it fits: as warnings."""
    stated = {field: metadata.get(field, "") for field in (*_ARCHITECTURE_FIELDS, *_NAME_FIELDS)}
    if config is not None:
        path = config.get("base_model_name_or_path")
        stated["PEFT's base_model_name_or_path"] = path if isinstance(path, str) else ""
    told: set[str] = set()
    for field, text in stated.items():
        family = _family_of(text)
        if family and family not in told:
            told.add(family)
            yield f"its metadata say that it was made for {family}, not FLUX.1 ({field}: {shorten(text, 60)})"


def _family_of(text: str) -> str | None:
    """The family other than FLUX.1 that a name belongs to; None for FLUX.1's, and for names that say nothing."""
    # metadata are a stranger's: only the beginning is searched
    return next((family for pattern, family in _FAMILIES if pattern.search(text[:300])), None)
