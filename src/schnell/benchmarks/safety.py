"""What the safety check costs, and how often it is wrong about the pictures that the embedded model draws."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from PIL import Image

from schnell.benchmarks.result import BenchmarkResult, median_pair
from schnell.benchmarks.single import make_job
from schnell.bootstrap import build_engine
from schnell.engine.engine import generate
from schnell.engine.safety import load_safety_checker
from schnell.models.catalogue import DEFAULT_MODEL
from schnell.training.mini.captions import COLOURS
from schnell.training.mini.pictures import SIDE, Icons, lay, read_icons
from schnell.training.mini.sources import NAMES, PICTURES, fetch

#: Where `schnell train mini` keeps what it fetches.
_PACKAGES: Final = Path("work/mini/packages")


def safety_cost() -> BenchmarkResult:
    """A default request, 1 MP in 4 steps to the finished file, with the safety check and without."""
    checked, unchecked, job = build_engine(DEFAULT_MODEL), build_engine(DEFAULT_MODEL, safety=False), make_job()
    with_check, without = median_pair(
        lambda: generate(checked, job, lambda _: None), lambda: generate(unchecked, job, lambda _: None)
    )
    stages = generate(checked, job, lambda _: None).timings
    return BenchmarkResult(
        ours=with_check,
        unit="s",
        ours_is="1024x1024 in 4 steps with the safety check",
        peer=without,
        peer_is="the same without it",
        ratio=with_check / without,
        details={"check_s": stages["safety"], "share": stages["safety"] / sum(stages.values())},
    )


def safety_false_alarms() -> BenchmarkResult:
    """Every icon that the embedded model learnt, on white and on one of its other colours, before the real checker."""
    checker = load_safety_checker()
    icons = read_icons(fetch(PICTURES, _PACKAGES), fetch(NAMES, _PACKAGES))
    scores = [checker.score(picture) for picture in _on_colours(icons)]
    flagged = sum(score >= checker.threshold for score in scores)
    return BenchmarkResult(
        ours=flagged / len(scores),
        unit="of the pictures",
        ours_is=f"flagged at {checker.threshold}, of pictures that are all harmless",
        details={"pictures": len(scores), "flagged": flagged, "highest": max(scores)},
    )


def _on_colours(icons: Icons) -> Iterator[Image.Image]:
    white, *others = COLOURS.values()
    for index in range(len(icons)):
        for colour in (white, others[index % len(others)]):
            yield _picture(icons.pictures[index], colour)


def _picture(icon: torch.Tensor, colour: tuple[float, float, float]) -> Image.Image:
    laid = lay(icon[None].float() / 255, torch.tensor([colour]), SIDE, SIDE)[0]
    return Image.fromarray((laid * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
