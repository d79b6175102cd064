"""Whether LoRAs look like their names, as a small classifier of looks sees it, trained on truly styled pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from schnell.spec import Size
from schnell_mini.captions import COLOURS
from schnell_mini.gallery import crop_object
from schnell_mini.lora_drawing import PLAIN, SQUARE, LoraArtist, to_tensor
from schnell_mini.lora_icons import Icon
from schnell_mini.lora_styles import BUNDLED, BundledLora
from schnell_mini.picture_figures import edge_distance
from schnell_mini.pictures import premultiply

VIEW = 96
EPOCHS = 30
#: The canvases whose edges are looked at: 1 MP and 0.25 MP.
EDGE_GRIDS = (SQUARE, Size(8, 8))

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class LookFigures:
    """Of one LoRA: the share of its drawn pictures that show its look, and that still show the object; worst edges.

    `edge` is at 1 MP, `small_edge` at 0.25 MP, in steps of 255.
    """

    look: str
    own_style: float
    named: float
    edge: float
    small_edge: float


def paint(look: BundledLora | None, icon: Icon) -> Tensor:
    """An icon in a look, or plain on white, `[3, 256, 256]` in 0..1."""
    if look is None:
        canvas = Image.new("RGBA", (256, 256), "white")
        small = icon.draw().resize((208, 208), Image.Resampling.LANCZOS)
        canvas.alpha_composite(small, (24, 24))
        return to_tensor(canvas)
    pixels = torch.from_numpy(premultiply(icon.draw())).permute(2, 0, 1)
    return look.paint(pixels[None], torch.tensor([look.background]))[0]


class LookClassifier(nn.Module):
    """Four convolutions and a mean over places: what a picture's surface is like, not what it shows."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        pairs = pairwise(widths)
        self.layers = nn.Sequential(*(part for a, b in pairs for part in (nn.Conv2d(a, b, 3, 2, 1), nn.GELU())))
        self.head = nn.Linear(2 * widths[-1], looks)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits `[B, looks]` of pictures `[B, 3, H, W]` in 0..1."""
        found = self.layers(functional.interpolate(pictures, size=(VIEW, VIEW), mode="area") - 0.5)
        logits: Tensor = self.head(torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1))
        return logits


def train_classifier(pictures: Tensor, looks: Tensor, count: int, epochs: int = EPOCHS) -> LookClassifier:
    """A classifier of true pictures `[N, 3, H, W]`, each of a numbered look `[N]`."""
    torch.manual_seed(0)
    classifier = LookClassifier(count)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.01)
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(pictures)), 32):
            logits = classifier(pictures[part] + 0.02 * torch.randn_like(pictures[part]))
            loss = functional.cross_entropy(logits, looks[part])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return classifier.eval()


def measure_looks(
    artist: LoraArtist, icons: Sequence[Icon], drawn: int, taught: int, report: Report
) -> list[LookFigures]:
    """Every bundled LoRA's figures at scale 0.8, over `drawn` icons; the classifier has seen `taught` others.

    The object counts as named when, of all drawn and taught icons in the LoRA's own look, its own is nearest.
    """
    chosen = Random(11).sample(list(icons), drawn + taught)
    asked, seen = chosen[:drawn], chosen[drawn:]
    looks: list[BundledLora | None] = [None, *BUNDLED]
    true = []
    for number, look in enumerate(looks):
        report("painting", number / len(looks))
        true.append(torch.stack([paint(look, icon) for icon in chosen]))
    pictures = torch.cat([each[drawn:] for each in true])
    numbers = torch.arange(len(looks)).repeat_interleave(len(seen))
    classifier = train_classifier(pictures, numbers, len(looks))
    report("held-out accuracy", held_out_accuracy(classifier, [each[:drawn] for each in true]))
    figures = []
    for number, look in enumerate(BUNDLED, 1):
        report(f"drawing {look.name}", number / len(looks))
        made = artist.draw(look.name, [f"{icon.label.name}, {look.trigger}" for icon in asked])
        gallery = torch.stack([crop_object(picture).flatten() for picture in true[number]])
        nearest = torch.cdist(torch.stack([crop_object(picture).flatten() for picture in made]), gallery).argmin(1)
        with torch.inference_mode():
            style = (classifier(made).argmax(1) == number).float().mean()
        named = (nearest == torch.arange(drawn)).float().mean()
        edge, small_edge = (worst_edge(artist, look, grid) for grid in EDGE_GRIDS)
        figures.append(LookFigures(look.name, float(style), float(named), edge, small_edge))
    return figures


def held_out_accuracy(classifier: LookClassifier, true: Sequence[Tensor]) -> float:
    """The share of true pictures, of icons that the classifier has not seen, whose look it tells."""
    with torch.inference_mode():
        right = [(classifier(each).argmax(1) == number).float().mean() for number, each in enumerate(true)]
    return float(torch.stack(right).mean())


def worst_edge(artist: LoraArtist, look: BundledLora | None, grid: Size = SQUARE) -> float:
    """The largest distance of a picture's edge from its ground (of 255), over all grounds that a look obeys."""
    grounds = list(COLOURS) if look is None or look.obeys_background else ["white"]
    trigger = f", {look.trigger}" if look else ""
    prompts = [f"red apple on a {ground} background{trigger}" for ground in grounds]
    made = artist.draw(look.name if look else PLAIN, prompts, grid=grid)
    wanted = [COLOURS[ground] if look is None or look.obeys_background else look.background for ground in grounds]
    return max(edge_distance(picture, ground) for picture, ground in zip(made, wanted, strict=True))
