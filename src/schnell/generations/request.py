"""A generation as any dialect asks for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from schnell.loras.references import show_reference
from schnell.spec import GenerationSpec

FEATURE: Final = "IMAGE_GENERATOR"
_REFERENCES: Final = frozenset({"lora_weights", "extra_lora", "loras"})


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A generation as a dialect hands it over.

    `prompt_object` is what the record echoes. `detached` keeps the generation running when nobody waits for it.
    `idempotency_key` makes a repeated request the same generation, and implies `detached`. `inline`: the answer holds
    the pictures themselves, so they must come back from the store before they are charged. `warnings` say what was
    asked for and is not done; the answer holds them.
    """

    spec: GenerationSpec
    model: str
    dialect: str
    prompt_object: Mapping[str, Any]
    type: str = FEATURE
    conversation_id: str | None = None
    idempotency_key: str | None = None
    detached: bool = False
    wants_previews: bool = False
    inline: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def body_sha256(self) -> str:
        """Equal for two requests that ask for the same."""
        meaning = [self.dialect, self.type, self.model, dict(self.prompt_object), repr(self.spec)]
        return sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def show_prompt_object(sent: Mapping[str, Any]) -> dict[str, Any]:
    """A `promptObject` as records keep and echo it: as it was sent, but for the secrets in the addresses of LoRAs."""
    return {name: _show_loras(value) if name in _REFERENCES else value for name, value in sent.items()}


def _show_loras(value: Any) -> Any:
    """What names LoRAs, one or a list of them, each as `show_reference` shows it; numbers as they are."""
    if isinstance(value, str):
        return show_reference(value)
    if isinstance(value, list):
        return [_show_loras(each) for each in value]
    return {key: _show_loras(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def describe_spec(spec: GenerationSpec) -> dict[str, Any]:
    """A spec as records keep it, in JSON."""
    return {
        "prompt": spec.prompt,
        "width": spec.size.width,
        "height": spec.size.height,
        "steps": spec.steps,
        "seed": spec.seed,
        "num_outputs": spec.num_outputs,
        "output_format": spec.output_format,
        "output_quality": spec.output_quality,
        "go_fast": spec.go_fast,
        "safety_checker": spec.safety_checker,
        "watermark": spec.watermark,
        "loras": [{"reference": show_reference(lora.reference), "scale": lora.scale} for lora in spec.loras],
    }
