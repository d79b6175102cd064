"""The icons that the bundled LoRAs learn from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from schnell_mini.captions import IconLabel
from schnell_mini.packages import NAMES, PICTURES, fetch
from schnell_mini.pictures import ICON_SIDE, hex_key, read_labels


@dataclass(frozen=True, slots=True)
class Icon:
    """An icon with its label; `draw` gives it as RGBA, 256 x 256, on a transparent ground."""

    code: str
    label: IconLabel
    draw: Callable[[], Image.Image]


def read_icons(folder: Path) -> list[Icon]:
    """Every named icon; the packages are fetched into `folder` when they are not there yet.

    Raises:
        TrainingDataError: npm is missing, or what it fetched is not the pinned package.
    """
    labels = read_labels(fetch(NAMES, folder))
    files = {hex_key(file.stem): file for file in sorted((fetch(PICTURES, folder) / "assets").glob("*.webp"))}
    return [Icon(code, labels[code], _opener(files[code])) for code in sorted(files.keys() & labels.keys())]


def list_packages() -> list[dict[str, str]]:
    """The packages that pictures and captions come from: name, version and licence."""
    return [
        {"package": package.name, "version": package.version, "licence": package.licence}
        for package in (PICTURES, NAMES)
    ]


def _opener(file: Path) -> Callable[[], Image.Image]:
    return lambda: _squared(Image.open(file).convert("RGBA"))


def _squared(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a transparent square of 256 pixels."""
    picture.thumbnail((ICON_SIDE, ICON_SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (ICON_SIDE, ICON_SIDE))
    square.paste(picture, ((ICON_SIDE - picture.width) // 2, (ICON_SIDE - picture.height) // 2))
    return square
