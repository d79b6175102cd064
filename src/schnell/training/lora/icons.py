"""The icons that the bundled LoRAs learn from, each in two drawings: in 3D and flat."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from schnell.training.errors import TrainingError
from schnell.training.mini.captions import Entry
from schnell.training.mini.pictures import hex_key, read_entries
from schnell.training.mini.sources import NAMES, PICTURES, Package, fetch

FLAT: Final = Package(
    "npm",
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "MIT",
)
SIDE: Final = 256

Drawing = Literal["3d", "flat"]
_DRAWN_BY: Final[dict[Drawing, Package]] = {"3d": PICTURES, "flat": FLAT}


@dataclass(frozen=True, slots=True)
class Icon:
    """An icon with its name and keywords; `draw` gives it as RGBA, 256 x 256, transparent around."""

    code: str
    entry: Entry
    draw: Callable[[], Image.Image]


def read_icons(drawing: Drawing, folder: Path) -> list[Icon]:
    """Every named icon in one of its drawings; the packages are fetched into `folder` when they are not there yet.

    Raises:
        TrainingDataError: npm is missing, or what it fetched is not the pinned package.
        TrainingError: the library that draws SVG is not installed.
    """
    entries = read_entries(fetch(NAMES, folder))
    package = fetch(_DRAWN_BY[drawing], folder)
    return _read_pictures(package, entries) if drawing == "3d" else _read_drawings(package, entries)


def sources_of(drawing: Drawing) -> list[dict[str, str]]:
    """The packages that a drawing and its captions come from: name, version and licence."""
    return [
        {"package": package.name, "version": package.version, "licence": package.licence}
        for package in (_DRAWN_BY[drawing], NAMES)
    ]


def _read_pictures(package: Path, entries: Mapping[str, Entry]) -> list[Icon]:
    files = {hex_key(file.stem): file for file in sorted((package / "assets").glob("*.webp"))}
    return [Icon(code, entries[code], _opener(files[code])) for code in sorted(files.keys() & entries.keys())]


def _opener(file: Path) -> Callable[[], Image.Image]:
    return lambda: _squared(Image.open(file).convert("RGBA"))


def _read_drawings(package: Path, entries: Mapping[str, Entry]) -> list[Icon]:
    collection = json.loads((package / "icons.json").read_text("utf-8"))
    characters = json.loads((package / "chars.json").read_text("utf-8"))
    names = {hex_key(code): name for code, name in characters.items() if name in collection["icons"]}
    return [
        Icon(code, entries[code], _renderer(collection, collection["icons"][names[code]]))
        for code in sorted(names.keys() & entries.keys())
    ]


def _renderer(collection: Mapping[str, Any], icon: Mapping[str, Any]) -> Callable[[], Image.Image]:
    width, height = icon.get("width", collection["width"]), icon.get("height", collection["height"])
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" color="black">{icon["body"]}</svg>'
    return lambda: _squared(render_svg(svg))


def render_svg(svg: str) -> Image.Image:
    """An SVG's text as RGBA pixels, 256 wide.

    Raises:
        TrainingError: resvg-py is not installed.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise TrainingError("drawing SVG needs resvg-py: pip install 'schnell[training]'") from error
    png = bytes(svg_to_bytes(svg_string=svg, width=SIDE))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _squared(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a transparent square of 256 pixels."""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square
