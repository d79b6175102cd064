"""The LoRAs that come with the embedded model, which every team may use: a file and a JSON card each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schnell.errors import AdapterError


@dataclass(frozen=True, slots=True)
class BundledLora:
    """A bundled LoRA and what its card says. `aliases` are other references that mean it; `preview` is a WebP file."""

    name: str
    path: Path
    description: str = ""
    trigger_words: tuple[str, ...] = ()
    licence: str | None = None
    aliases: tuple[str, ...] = ()
    preview: Path | None = None

    def answers_to(self, reference: str) -> bool:
        """Whether a caller's reference means this LoRA, by its name or an alias, in any case."""
        return reference.lower() in {self.name, *(alias.lower() for alias in self.aliases)}


def read_bundled(folder: Path) -> tuple[BundledLora, ...]:
    """The LoRAs in `folder`, sorted by name; none where there is no such folder.

    Each is a file `NAME.safetensors` with a card `NAME.json`, whose keys `description`, `trigger_words`, `licence` and
    `aliases` are all optional, and perhaps a picture `NAME.webp`. A file without a card is left out.

    Raises:
        AdapterError: a card cannot be read.
    """
    if not folder.is_dir():
        return ()
    return tuple(_read(path) for path in sorted(folder.glob("*.safetensors")) if path.with_suffix(".json").exists())


def _read(path: Path) -> BundledLora:
    card_path = path.with_suffix(".json")
    try:
        card: Any = json.loads(card_path.read_text("utf-8"))
        return BundledLora(
            name=path.stem.lower(),
            path=path,
            description=str(card.get("description", "")),
            trigger_words=tuple(map(str, card.get("trigger_words", ()))),
            licence=card.get("licence"),
            aliases=tuple(map(str, card.get("aliases", ()))),
            preview=preview if (preview := path.with_suffix(".webp")).is_file() else None,
        )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise AdapterError(f"{card_path.name} is not a LoRA's card: {error}") from error
