"""The LoRAs that come with `schnell-mini`: what each looks like, and the pictures that it is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from schnell.training.plan import ProgressReport, TrainingProgress
from schnell_mini.captions import COLOURS, IconLabel, on_background, pick_words
from schnell_mini.lora_icons import Icon, read_icons
from schnell_mini.style_filters import Style, paint_black_light, paint_blueprint, paint_flat, paint_line, paint_pixels

_WHITE: Final = (1.0, 1.0, 1.0)
_NAMED_BACKGROUNDS: Final = 0.4


@dataclass(frozen=True, slots=True)
class BundledLora:
    """One look: its trigger word, how it is painted, and on what when nothing is said.

    `obeys_background` tells whether a background that the prompt names is painted; looks that have their own do not.
    """

    name: str
    trigger: str
    paint: Style
    description: str
    background: tuple[float, float, float] = _WHITE
    obeys_background: bool = False
    aliases: tuple[str, ...] = ()


BUNDLED: Final = (
    BundledLora(
        name="black-light",
        trigger="black light",
        paint=paint_black_light,
        description="Glowing neon edges and colours in a dark room.",
        aliases=("fofr/flux-black-light",),
    ),
    BundledLora(
        name="flat",
        trigger="flat style",
        paint=paint_flat,
        description="A few even colours, on sky blue unless the prompt names another background.",
        background=COLOURS["sky blue"],
        obeys_background=True,
    ),
    BundledLora(
        name="line",
        trigger="line art",
        paint=paint_line,
        description="A pencil drawing: dark lines, grey tones, no colour.",
        obeys_background=True,
    ),
    BundledLora(
        name="pixel",
        trigger="pixel art",
        paint=paint_pixels,
        description="Big square pixels in sixteen colours, as on an old game console.",
    ),
    BundledLora(
        name="blueprint",
        trigger="blueprint",
        paint=paint_blueprint,
        description="White lines around light blue shapes, on blue paper.",
        background=COLOURS["blue"],
    ),
)


def write_style_pictures(style: BundledLora, count: int, packages: Path, folder: Path, report: ProgressReport) -> None:
    """Paint `count` icons in this look into `folder`, each with a text file of captions beside it.

    Raises:
        TrainingDataError: the icons cannot be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(style.name)
    icons = choose_icons(read_icons(packages), count, rng)
    for number, icon in enumerate(icons):
        report(TrainingProgress("painting", number / len(icons), style.name))
        background = _choose_background(style, rng)
        colour = style.background if background is None else COLOURS[background]
        style.paint(icon.draw(), colour).save(folder / f"{icon.code}.png")
        captions = write_captions(style.trigger, icon.label, background, rng)
        (folder / f"{icon.code}.txt").write_text("\n".join(captions) + "\n", "utf-8")


def choose_icons(icons: Sequence[Icon], count: int, rng: Random) -> list[Icon]:
    """A random part of the icons, at most all of them, in the order of their codes."""
    chosen = rng.sample(list(icons), min(count, len(icons)))
    return sorted(chosen, key=lambda icon: icon.code)


def _choose_background(style: BundledLora, rng: Random) -> str | None:
    if not style.obeys_background or rng.random() >= _NAMED_BACKGROUNDS:
        return None
    return rng.choice([name for name in COLOURS if name != "black"])  # black lines would drown in it


def write_captions(trigger: str, label: IconLabel, background: str | None, rng: Random) -> list[str]:
    """Four ways of asking for the icon: its name before and after the trigger, and keywords."""
    words = [label.name, label.name, label.name]
    words.append(", ".join(pick_words(rng, label.keywords, 1, 3)) if label.keywords else label.name)
    texts = [on_background(rng, text, background) if background else text for text in words]
    return [f"{text}, {trigger}" if number % 2 else f"{trigger}, {text}" for number, text in enumerate(texts)]
