"""The LoRAs that come with the embedded model, which every team may use: a file and a JSON card each."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schnell.adapters import ConvertedAdapter
from schnell.errors import AdapterError
from schnell.loras.files import AdapterFiles
from schnell.loras.repository import PUBLIC, LibraryLora, draft_lora


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


class BundledLoras:
    """The bundled LoRAs as the library shows and uses them. Each is converted when it is first named or listed."""

    def __init__(self, files: AdapterFiles, loras: Sequence[BundledLora] = ()) -> None:
        self._files = files
        self._loras = tuple(loras)
        self._converted: dict[str, ConvertedAdapter] = {}
        self._shown: dict[str, LibraryLora] = {}

    def __iter__(self) -> Iterator[BundledLora]:
        return iter(self._loras)

    def find(self, reference: str) -> BundledLora | None:
        """The one that a reference means, by its name or an alias."""
        return next((lora for lora in self._loras if lora.answers_to(reference)), None)

    def uses(self, sha256: str) -> bool:
        """Whether one of them has this file: it stays, whoever else adds and removes the same content."""
        return any(converted.sha256 == sha256 for converted in self._converted.values())

    def preview_of(self, lora_id: str) -> Path | None:
        """The picture that came with one of them."""
        return next((lora.preview for lora in self._loras if lora.name == lora_id), None)

    async def convert(self, lora: BundledLora) -> ConvertedAdapter:
        """Its converted file, made again if it has been removed from the folder."""
        known = self._converted.get(lora.name)
        if known is None or await self._files.find(known.sha256) is None:
            with self._files.adding():
                known = self._converted[lora.name] = await self._files.convert(lora.path)
        return known

    async def list(self) -> tuple[LibraryLora, ...]:
        """All of them, as LoRAs of the library. Those shown before are not looked for: who draws with one does."""
        return tuple([self._shown.get(lora.name) or await self.show(lora) for lora in self._loras])

    async def show(self, lora: BundledLora) -> LibraryLora:
        """It as a LoRA of the library."""
        converted = await self.convert(lora)
        if (known := self._shown.get(lora.name)) is not None:
            return known
        info = replace(converted.info, trigger_words=lora.trigger_words, licence=lora.licence)
        size = (await asyncio.to_thread(converted.path.stat)).st_size
        shown = draft_lora(
            info, converted.sha256, size, owner=PUBLIC, name=lora.name, source="bundled", created_by="schnell"
        )
        # its name is its id: it has no row that would keep one, and an id must be the same after a restart
        self._shown[lora.name] = replace(shown, id=lora.name)
        return self._shown[lora.name]
