"""What a LoRA file's metadata and PEFT's configuration state: trigger words, base model, licence, and scaling."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from schnell.errors import AdapterError

_TRIGGERS: Final = (
    "modelspec.trigger_phrase",
    "trigger_words",
    "trigger_word",
    "trigger_phrase",
    "instance_prompt",
    "activation_text",
    "ss_trigger_words",
)
_BASES: Final = (
    "ss_base_model_version",
    "modelspec.architecture",
    "base_model",
    "ss_sd_model_name",
    "base_model_name_or_path",
)
_LICENCES: Final = ("modelspec.license", "license", "licence")
#: Metadata come from strangers and are shown on pages: so many characters of a text, and so many texts.
_MAX_TEXT: Final = 200
_MAX_TEXTS: Final = 16
#: PEFT's `adapter_config.json` takes one or two KiB.
MAX_CONFIG_BYTES: Final = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Provenance:
    """Trigger words, hints about the base model, and the licence, as the file's metadata state them."""

    trigger_words: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    licence: str | None = None


def read_provenance(metadata: Mapping[str, str]) -> Provenance:
    """Collect what the metadata state, each text cut to one line of 200 characters."""
    licences = _texts(metadata, _LICENCES)
    return Provenance(_texts(metadata, _TRIGGERS), _texts(metadata, _BASES), licences[0] if licences else None)


def _texts(metadata: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, ...]:
    found = [text for name in names for text in _listed(metadata.get(name, ""))]
    return tuple(dict.fromkeys(text for text in found if text))[:_MAX_TEXTS]


def _listed(text: str) -> list[str]:
    # metadata are strings; some trainers put a JSON list or a JSON string into one
    try:
        value = json.loads(text) if text[:1] in {"[", '"'} else text
    except (ValueError, RecursionError):
        value = text
    values = value if isinstance(value, list) else [value]
    return [_one_line(item) for item in values if isinstance(item, str)]


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text[: 4 * _MAX_TEXT])).strip()[
        :_MAX_TEXT
    ]


@dataclass(frozen=True, slots=True)
class PeftScaling:
    """How PEFT scales an adapter: alpha / rank, or alpha / √rank with rank-stabilised LoRA (arXiv:2312.03732).

    `alphas` holds the exceptions to `alpha`, by module name or its last parts.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def scale(self, module: str, rank: int) -> float:
        """The factor of the delta of the module with this name and rank; 1 where PEFT states no alpha."""
        exceptions = (value for name, value in self.alphas.items() if module == name or module.endswith(f".{name}"))
        alpha = next(exceptions, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / rank**0.5 if self.rank_stabilised else alpha / rank


def parse_peft_config(text: bytes) -> dict[str, Any]:
    """The fields of PEFT's `adapter_config.json`.

    Raises:
        AdapterError: it is not a JSON object.
    """
    return _json_object(text, "adapter_config.json")


def read_peft_scaling(metadata: Mapping[str, str], config: Mapping[str, Any] | None = None) -> dict[str, PeftScaling]:
    """Scaling by component, from diffusers' `lora_adapter_metadata` or from PEFT's `adapter_config.json`.

    Raises:
        AdapterError: the fields are not numbers, or name modules by a pattern that is more than a plain name.
    """
    scalings: dict[str, PeftScaling] = {}
    if config is not None:
        scalings["transformer"] = _scaling(config)
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return scalings
    fields = _json_object(text, "the metadata's lora_adapter_metadata")
    for component in ("transformer", "text_encoder", "text_encoder_2"):
        own = {
            name.removeprefix(f"{component}."): value
            for name, value in fields.items()
            if name.startswith(f"{component}.")
        }
        if own:
            scalings[component] = _scaling(own)
    return scalings


def _json_object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # brackets nested by the thousand exhaust the parser's stack
        raise AdapterError(f"{what} is not valid JSON") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{what} is not a JSON object")
    return value


def _scaling(config: Mapping[str, Any]) -> PeftScaling:
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise AdapterError("PEFT's alpha_pattern is not an object")
    alpha = config.get("lora_alpha")
    return PeftScaling(
        alpha=None if alpha is None else _number("lora_alpha", alpha),
        alphas={_plain_name(name): _number(name, value) for name, value in patterns.items()},
        rank_stabilised=bool(config.get("use_rslora", False)),
    )


def _plain_name(pattern: str) -> str:
    # PEFT takes regular expressions here. One from a stranger may run for hours, so only those that spell a plain name
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise AdapterError(f"PEFT's alpha_pattern {pattern[:80]!r} is not a plain module name")
    return name


def _number(name: str, value: object) -> float:
    # Python counts booleans among its integers
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e6:
        raise AdapterError(f"PEFT's {name[:80]} is not a number within ±1,000,000")
    return float(value)
