"""How well a model folder draws what it is asked: the figures of `python -m schnell_mini model --evaluate`.

Every figure is a share between 0 and 1 except variety, reconstruction and distances (PSNR in dB).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from schnell_mini.caption_dataset import STYLE_PHRASES
from schnell_mini.captions import COLOURS, half_of_keywords
from schnell_mini.gallery import Gallery, build_gallery, inside_frame, nearest_colour
from schnell_mini.latents import icon_size
from schnell_mini.picture_figures import aligned_psnr, median, sharpness, training_pictures
from schnell_mini.pictures import Icons, render_icons
from schnell_mini.sampling import MiniPipeline, draw_pictures, load_pipeline

SQUARE = (256, 256)
FRAMES = {"16:9": (192, 336), "9:16": (336, 192), "0.25 MP": (128, 128)}
STEPS = 4
COMPARED_STEPS = (1, 2, 4)
STYLED_ORDERS = ("{name} on a {colour} background, {style}", "{style}, {name} on a {colour} background")
SEED = 7
BATCH = 8

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Figures:
    """The figures (a) to (h); `pictures` says how many prompts the shares rest on at most."""

    named: float
    named_within_ten: float
    keywords: float
    colour: float
    colour_in_styles: float
    named_two_steps: float
    named_one_step: float
    variety_db: float
    variety_named: float
    free_prompts: float
    composition: float
    reconstruction_db: float
    sharpness: float
    training_db: tuple[float, float, float]
    pictures: int

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and goal of each figure, for people."""
        return [
            ("(a) named", f"{self.named:.1%}", "≥95%"),
            ("    within the nearest ten", f"{self.named_within_ten:.1%}", ""),
            ("(b) keywords", f"{self.keywords:.1%}", "≥80%"),
            ("(c) colour", f"{self.colour:.1%}", "≥98%"),
            ("    with words of style on either side", f"{self.colour_in_styles:.1%}", "≥98%"),
            ("(d) named, 2 steps", f"{self.named_two_steps:.1%}", "≥90%"),
            ("(d) named, 1 step", f"{self.named_one_step:.1%}", "≥80%"),
            ("(e) variety, median PSNR between seeds", f"{self.variety_db:.1f} dB", "≤22 dB"),
            ("(e) the object stays", f"{self.variety_named:.1%}", ""),
            ("(f) free prompts", f"{self.free_prompts:.1%}", "≥70%"),
            ("(g) composition", f"{self.composition:.1%}", "≥95%"),
            ("(h) reconstruction", f"{self.reconstruction_db:.1f} dB", "≥30 dB"),
            ("sharpness, median", f"{self.sharpness:.2f}", "≥0.80"),
            *(
                (f"to the training picture, {steps} steps", f"{value:.1f} dB", "≥24 dB" if steps == STEPS else "rises")
                for steps, value in zip(COMPARED_STEPS, self.training_db, strict=True)
            ),
        ]

    def to_json(self) -> dict[str, float]:
        """The figures as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class FreePrompt:
    """A free prompt and the numbers of the icons that would be right."""

    text: str
    icons: frozenset[int]


@dataclass(frozen=True)
class EvaluationRun:
    """A model under evaluation, all icons, and the numbers of those that are asked for."""

    pipeline: MiniPipeline
    icons: Icons
    gallery: Gallery
    asked: tuple[int, ...]
    report: Report

    def pictures(
        self, title: str, prompts: Sequence[str], steps: int = STEPS, size: tuple[int, int] = SQUARE
    ) -> Iterator[Tensor]:
        """One picture for each prompt, drawn in batches with seeds that differ."""
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            yield from draw_pictures(self.pipeline, part, [SEED + start + i for i in range(len(part))], size, steps)
            self.report(title, (start + len(part)) / len(prompts))

    def ranks(self, title: str, prompts: Sequence[str], steps: int = STEPS) -> Tensor:
        """For each asked icon, how many others are nearer to its picture."""
        pictures = self.pictures(title, prompts, steps)
        return torch.tensor([self.gallery.ranks(p, i) for p, i in zip(pictures, self.asked, strict=True)])

    def names(self) -> list[str]:
        """The names of the asked icons."""
        return [self.icons.labels[i].name for i in self.asked]


def share(hits: Sequence[bool]) -> float:
    """The part of the hits that are true."""
    return sum(hits) / max(1, len(hits))


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures in 0..1, in dB."""
    return float(-10 * torch.log10((first - second).pow(2).mean().clamp_min(1e-10)))


def colour_share(run: EvaluationRun, count: int, orders: Sequence[str] = ("{name} on a {colour} background",)) -> float:
    """(c): the border is nearest to the asked colour; `orders` may hold words of style as well."""
    rng = Random(SEED)
    asked = [(rng.choice(run.icons.labels).name, rng.choice(list(COLOURS))) for _ in range(count)]
    prompts = [
        rng.choice(orders).format(name=name, colour=colour, style=rng.choice(STYLE_PHRASES)) for name, colour in asked
    ]
    pictures = run.pictures("colour", prompts)
    return share([nearest_colour(p) == colour for p, (_, colour) in zip(pictures, asked, strict=True)])


def variety(run: EvaluationRun, count: int, seeds: int = 4) -> tuple[float, float]:
    """(e): median PSNR between the seeds of one name, and how often the object stays."""
    between: list[float] = []
    hits: list[bool] = []
    for number, icon in enumerate(run.asked[:count], 1):
        prompts = [run.icons.labels[icon].name] * seeds
        drawn = draw_pictures(run.pipeline, prompts, range(seeds), SQUARE, STEPS)
        between += [psnr(drawn[a], drawn[b]) for a in range(seeds) for b in range(a)]
        hits += [run.gallery.ranks(picture, icon) == 0 for picture in drawn]
        run.report("variety", number / count)
    return float(torch.tensor(between).median()), share(hits)


def read_free_prompts(icons: Icons) -> list[FreePrompt]:
    """The sentences of `sentences.json`, with icons by number."""
    number = {label.name: i for i, label in enumerate(icons.labels)}
    rows = json.loads(files("schnell_mini").joinpath("sentences.json").read_text("utf-8"))
    return [FreePrompt(r["sentence"], frozenset(number[i] for i in r["icons"] if i in number)) for r in rows]


def free_share(run: EvaluationRun, count: int) -> float:
    """(f): the nearest icon is one of those that would be right."""
    sentences = read_free_prompts(run.icons)[:count]
    pictures = run.pictures("free prompts", [s.text for s in sentences])
    return share([run.gallery.nearest(p) in s.icons for p, s in zip(pictures, sentences, strict=True)])


def composition_share(run: EvaluationRun, count: int) -> float:
    """(g): the whole object is inside the frame, at the wide ratios and the small size."""
    names = run.names()[:count]
    hits = [
        inside_frame(picture)
        for title, size in FRAMES.items()
        for picture in run.pictures(f"composition {title}", names, size=size)
    ]
    return share(hits)


def distances(run: EvaluationRun, count: int) -> tuple[float, tuple[float, float, float]]:
    """Median sharpness at four steps, and median PSNR to the training pictures at one, two and four steps."""
    names, wanted = run.names()[:count], training_pictures(run.icons, run.asked[:count])
    near = []
    for steps in COMPARED_STEPS:
        drawn = list(run.pictures(f"{steps} steps to the training pictures", names, steps))
        near.append(median([aligned_psnr(one, other) for one, other in zip(drawn, wanted, strict=True)]))
    return median([sharpness(one, other) for one, other in zip(drawn, wanted, strict=True)]), (
        near[0],
        near[1],
        near[2],
    )


@torch.no_grad()
def reconstruction(run: EvaluationRun) -> float:
    """(h): mean PSNR of the VAE on the asked icons at drawn size."""
    vae, values = run.pipeline.vae, []
    for start in range(0, len(run.asked), BATCH):
        chosen = list(run.asked[start : start + BATCH])
        pixels = render_icons(run.icons.pictures[chosen], torch.ones(len(chosen), 3), icon_size(256), 256)
        out = vae.decode(vae.encode(pixels.to(vae.device)).latent_dist.mean).sample.cpu().clamp(-1, 1)
        values += [psnr(a / 2 + 0.5, b / 2 + 0.5) for a, b in zip(out, pixels, strict=True)]
    return sum(values) / len(values)


def evaluate(folder: Path, icons: Icons, limit: int | None, device: str, report: Report) -> Figures:
    """All figures of a model folder. `limit` asks for that many random icons instead of all; never fewer candidates."""
    asked = tuple(range(len(icons)))
    if limit is not None and limit < len(icons):
        asked = tuple(sorted(Random(SEED).sample(asked, limit)))
    run = EvaluationRun(load_pipeline(folder, device), icons, build_gallery(icons.pictures), asked, report)
    count = len(asked)
    rng = Random(SEED)
    named = run.ranks("named", run.names())
    keywords = run.ranks("keywords", [half_of_keywords(rng, icons.labels[i]) for i in asked])
    between, stays = variety(run, min(50, count))
    crisp, near = distances(run, min(200, count))
    return Figures(
        named=share((named == 0).tolist()),
        named_within_ten=share((named < 10).tolist()),
        keywords=share((keywords == 0).tolist()),
        colour=colour_share(run, min(200, count)),
        colour_in_styles=colour_share(run, min(200, count), STYLED_ORDERS),
        named_two_steps=share((run.ranks("two steps", run.names(), 2) == 0).tolist()),
        named_one_step=share((run.ranks("one step", run.names(), 1) == 0).tolist()),
        variety_db=between,
        variety_named=stays,
        free_prompts=free_share(run, min(100, count)),
        composition=composition_share(run, min(100, count)),
        reconstruction_db=reconstruction(run),
        sharpness=crisp,
        training_db=near,
        pictures=count,
    )
