"""Icons in every look, on canvases of every ratio, each with captions: what autoencoder and transformer learn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from schnell_mini.captions import COLOURS, IconLabel, decorate, on_background
from schnell_mini.latents import encode_pictures
from schnell_mini.learned.looks import LOOKS, Look, ground_of, place
from schnell_mini.learned.transformer import Captioned
from schnell_mini.loop import mixed_precision
from schnell_mini.pictures import Icons, draw_evenly
from schnell_mini.sampling import MiniPipeline

BATCH = 16
CAPTIONS_EACH = 3
#: An icon's share of the shorter side, its tilt in degrees, and its distance from the middle as a share of that side.
LEAST_SHARE, MOST_SHARE, TILT, MOVE = 0.72, 0.82, 6.0, 0.05
WHITE_SHARE, UNNAMED_LOOK_SHARE = 0.5, 0.8


@dataclass(frozen=True)
class Canvas:
    """A size in drawn pixels, multiples of 32, and how many pictures of each icon in each look it gets."""

    height: int
    width: int
    plain: float
    styled: float


#: Every size that the API's ratios draw at, at 1 MP and 0.25 MP; the square ones are asked for most.
CANVASES = (
    Canvas(256, 256, 4.0, 1.0),
    *(Canvas(h, w, 0.5, 0.12) for h, w in ((192, 352), (352, 192), (224, 320), (320, 224), (288, 224), (224, 288))),
    Canvas(128, 128, 1.0, 0.3),
    *(Canvas(h, w, 0.4, 0.1) for h, w in ((96, 192), (192, 96), (128, 160), (160, 128))),
)


@dataclass(frozen=True)
class Picture:
    """What one picture shows: numbers of icon and look, the ground's colour, and the placement (see `place`)."""

    icon: int
    look: int
    ground: str
    placement: tuple[float, float, float, float]


def plan_pictures(rng: Random, icons: int, canvas: Canvas) -> list[Picture]:
    """The pictures of one canvas; a fraction of a picture an icon is that share of the icons."""
    planned = []
    for look, _ in enumerate(LOOKS):
        wanted = round(icons * (canvas.styled if look else canvas.plain))
        planned += [plan_picture(rng, icon, look, canvas) for icon in draw_evenly(rng, icons, wanted)]
    return planned


def plan_picture(rng: Random, icon: int, look: int, canvas: Canvas) -> Picture:
    """One picture, placed and coloured at random."""
    short = min(canvas.height, canvas.width)
    side = short * rng.uniform(LEAST_SHARE, MOST_SHARE)
    right, down = (short * rng.uniform(-MOVE, MOVE) for _ in range(2))
    ground = "white" if rng.random() < WHITE_SHARE else rng.choice([name for name in COLOURS if name != "white"])
    if ground == "black" and LOOKS[look].name == "line":  # black lines would drown in it
        ground = "white"
    return Picture(icon, look, ground, (side, rng.uniform(-TILT, TILT), right, down))


def paint(
    icons: Icons, pictures: Sequence[Picture], canvas: Canvas, device: torch.device
) -> Iterator[tuple[list[int], Tensor]]:
    """Pictures `[B, 3, H, W]` in 0..1 with their numbers, look by look."""
    for look_number, look in enumerate(LOOKS):
        numbers = [number for number, picture in enumerate(pictures) if picture.look == look_number]
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            chosen = [pictures[number] for number in part]
            pixels = icons.pictures[[each.icon for each in chosen]].to(device).float() / 255
            placed = place(
                pixels, (canvas.height, canvas.width), torch.tensor([each.placement for each in chosen]).to(device)
            )
            grounds = torch.tensor([ground_of(look, each.ground) for each in chosen]).to(device)
            yield part, look.paint(placed, grounds).clamp(0, 1)


def write_caption(rng: Random, label: IconLabel, look: Look, ground: str) -> str:
    """A prompt for the icon by its name, in a look, on a ground unless the look has its own."""
    text = decorate(rng, label.name)
    if look.ground is None:
        text = on_background(rng, text, ground)
    if look is LOOKS[0] and rng.random() < UNNAMED_LOOK_SHARE:
        return text
    phrase = look.phrases[0] if rng.random() < 0.7 else rng.choice(look.phrases)
    return rng.choice(("{}, {}", "{} {}")).format(*(text, phrase) if rng.random() < 0.6 else (phrase, text))


@torch.no_grad()
def build_captioned(icons: Icons, canvas: Canvas, pipeline: MiniPipeline, rng: Random) -> Captioned:
    """One canvas's pictures as scaled latents, and their captions as embeddings, in half precision on the CPU."""
    pictures, vae = plan_pictures(rng, len(icons), canvas), pipeline.vae.to(memory_format=torch.channels_last)
    down = 2 ** (len(vae.config["block_out_channels"]) - 1)
    latents = torch.empty(len(pictures), 16, canvas.height // down, canvas.width // down, dtype=torch.float16)
    for numbers, pixels in paint(icons, pictures, canvas, pipeline.device):
        with mixed_precision(pipeline.device):  # no gradient: bfloat16 convolutions are fast
            latents[numbers] = encode_pictures(vae, 2 * pixels - 1).half().cpu()
    texts = [
        write_caption(rng, icons.labels[each.icon], LOOKS[each.look], each.ground)
        for each in pictures
        for _ in range(CAPTIONS_EACH)
    ]
    kinds = list(dict.fromkeys(texts))
    number = {caption: index for index, caption in enumerate(kinds)}
    prompts = [
        prompt for start in range(0, len(kinds), 64) for prompt in pipeline.text.encode(kinds[start : start + 64])
    ]
    return Captioned(
        latents=latents,
        states=torch.stack([prompt.states for prompt in prompts]).half().cpu(),
        pooled=torch.stack([prompt.pooled for prompt in prompts]).half().cpu(),
        captions=torch.tensor([number[caption] for caption in texts]).view(-1, CAPTIONS_EACH),
    )
