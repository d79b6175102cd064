"""How often the safety check is wrong about the pictures that the embedded model learns to draw."""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from schnell.engine.safety import load_safety_checker
from schnell_mini.captions import COLOURS
from schnell_mini.packages import NAMES, PICTURES, fetch
from schnell_mini.pictures import ICON_SIDE, Icons, composite, read_icons


def count_false_alarms(packages: Path) -> dict[str, float]:
    """Score every icon, on white and on one other colour; none of them is unsafe. `packages` keeps what is fetched.

    Gives `pictures`, `flagged` (those at or above the checker's threshold), their `share`, and the `highest` score.

    Raises:
        TrainingDataError: the icons cannot be fetched.
    """
    checker = load_safety_checker()
    icons = read_icons(fetch(PICTURES, packages), fetch(NAMES, packages))
    scores = [checker.score(picture) for picture in _on_colours(icons)]
    flagged = sum(score >= checker.threshold for score in scores)
    return {"pictures": len(scores), "flagged": flagged, "share": flagged / len(scores), "highest": max(scores)}


def _on_colours(icons: Icons) -> Iterator[Image.Image]:
    white, *others = COLOURS.values()
    for index in range(len(icons)):
        for colour in (white, others[index % len(others)]):
            yield _picture(icons.pictures[index], colour)


def _picture(icon: torch.Tensor, colour: tuple[float, float, float]) -> Image.Image:
    picture = composite(icon[None].float() / 255, torch.tensor([colour]), ICON_SIDE, ICON_SIDE)[0]
    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
