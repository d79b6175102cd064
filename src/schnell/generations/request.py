import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from schnell.errors import FieldProblem, InvalidFieldError
from schnell.spec import AdapterUse, FetchListener, GenerationSpec, LoraRef

FEATURE = "IMAGE_GENERATOR"


class ResolveLoras(Protocol):
    """Finds the file behind each LoRA that a team names, and tells how far it is where one must be fetched."""

    async def __call__(
        self, refs: Sequence[LoraRef], team_id: str, on_fetch: FetchListener | None = None
    ) -> tuple[AdapterUse, ...]:
        """Raises SchnellError naming the field."""
        ...


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A generation as a dialect hands it over.

    `prompt_object` is what the record echoes. `detached` keeps the generation running when nobody waits for it.
    `idempotency_key` makes a repeated request the same generation, and implies `detached`.
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

    @property
    def body_sha256(self) -> str:
        """Tells apart two bodies that come with one `Idempotency-Key`."""
        meaning = [self.dialect, self.type, self.model, dict(self.prompt_object), repr(self.spec)]
        return sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


async def refuse_loras(
    refs: Sequence[LoraRef],
    team_id: str,  # noqa: ARG001 - a ResolveLoras
    on_fetch: FetchListener | None = None,  # noqa: ARG001 - a ResolveLoras
) -> tuple[AdapterUse, ...]:
    """The resolver of a server that has no LoRA library: refuses every LoRA, and never ignores one.

    Raises:
        InvalidFieldError: when `refs` is not empty.
    """
    if refs:
        raise InvalidFieldError(FieldProblem("lora_weights", "this server has no LoRA library; leave the field out"))
    return ()
