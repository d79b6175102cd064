"""The icons that the bundled LoRAs learn from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from schnell_mini.captions import Entry
from schnell_mini.packages import NAMES, PICTURES, fetch
from schnell_mini.pictures import hex_key, read_entries

SIDE: Final = 256


@dataclass(frozen=True, slots=True)
class Icon:
    """An icon with its name and keywords; `draw` gives it as RGBA, 256 x 256, transparent around."""

    code: str
    entry: Entry
    draw: Callable[[], Image.Image]


def read_icons(folder: Path) -> list[Icon]:
    """Every named icon; the packages are fetched into `folder` when they are not there yet.

    Raises:
        TrainingDataError: npm is missing, or what it fetched is not the pinned package.
    """
    entries = read_entries(fetch(NAMES, folder))
    files = {hex_key(file.stem): file for file in sorted((fetch(PICTURES, folder) / "assets").glob("*.webp"))}
    return [Icon(code, entries[code], _opener(files[code])) for code in sorted(files.keys() & entries.keys())]


def sources() -> list[dict[str, str]]:
    """The packages that pictures and captions come from: name, version and licence."""
    return [
        {"package": package.name, "version": package.version, "licence": package.licence}
        for package in (PICTURES, NAMES)
    ]


def _opener(file: Path) -> Callable[[], Image.Image]:
    return lambda: _squared(Image.open(file).convert("RGBA"))


def _squared(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a transparent square of 256 pixels."""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square
