"""How many icons are still drawn as asked when the engine runs schnell-mini in quantized forms."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schnell.benchmarks.quantized_quality import BFLOAT16_FORM, FORMS, Likeness, draw_in_form
from schnell.models.folder import ModelFolder
from schnell_mini.evaluation import SEED, Report, share
from schnell_mini.gallery import Gallery, build_gallery
from schnell_mini.pictures import Icons


@dataclass(frozen=True)
class FormFigures:
    """A form: the share of icons that are named, as (a) of `evaluation`, and the likeness to bfloat16's pictures."""

    form: str
    named: float
    median_db: float
    lowest_db: float


def evaluate_forms(folder: ModelFolder, icons: Icons, limit: int, report: Report) -> list[FormFigures]:
    """Figures of bfloat16 and of every quantized form, for `limit` random icons by their names."""
    asked = sorted(Random(SEED).sample(range(len(icons)), min(limit, len(icons))))
    names, gallery = [icons.labels[number].name for number in asked], build_gallery(icons.pictures)
    exact: list[Image.Image] = []
    figures = []
    for index, (name, form) in enumerate({"bfloat16": BFLOAT16_FORM, **FORMS}.items(), 1):
        pictures = list(draw_in_form(folder, form, names))
        exact = exact or pictures
        alike = Likeness.between(pictures, exact)
        figures.append(FormFigures(name, _named(pictures, asked, gallery), alike.median_db, alike.lowest_db))
        report(name, index / (1 + len(FORMS)))
    return figures


def _named(pictures: Sequence[Image.Image], asked: Sequence[int], gallery: Gallery) -> float:
    return share([gallery.ranks(_as_tensor(each), icon) == 0 for each, icon in zip(pictures, asked, strict=True)])


def _as_tensor(picture: Image.Image) -> Tensor:
    """`[3, H, W]` in 0..1, as the gallery wants it."""
    return torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)
