"""What the decoder is finetuned on: latents as they are drawn, with LoRAs and without, each with the right picture.

The noise says where an icon is drawn, so the picture that drawn latents should become is known. At the last of several
steps the base sometimes has it a token beside that (decision 68): the placement that its picture is nearest to counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from schnell.engine.denoise import unpack_latents
from schnell.engine.flux import Flux
from schnell.training.low_rank import BaseModel, set_scale
from schnell_mini.captions import COLOURS
from schnell_mini.latents import encode_pictures
from schnell_mini.learned.looks import LOOKS, Look
from schnell_mini.loop import Show
from schnell_mini.lora_canvases import CANVASES, PIXELS_PER_TOKEN, CanvasSet, Painter, choose_pictures, find_placements
from schnell_mini.lora_drawing import install_file
from schnell_mini.patterns import cover
from schnell_mini.pictures import Icons, resize
from schnell_mini.placement import SMALLEST_MOVED, Grid
from schnell_mini.sampling import decode, denoise

BATCH = 16
#: Pictures drawn by the base, with each LoRA, encoded from what was painted, and from that under a pattern.
DRAWN, WITH_LORA, ENCODED, PATTERNED = 1600, 96, 320, 480
STEP_COUNTS = (1, 1, 2, 4, 4)
LORA_SCALE = 0.9
#: A picture further than this (mean squared error) from every placement shows something else: a misread prompt.
MOST_ERROR = 0.02


@dataclass(frozen=True)
class DrawnPicture:
    """Latents `[16, h, w]`, scaled, in half precision, and their picture `[3, 8h, 8w]` in bytes."""

    latents: Tensor
    picture: Tensor


@dataclass(frozen=True)
class Studio:
    """What pictures are drawn and painted with; `loras` is the folder of the bundled ones, or None to use none."""

    base: BaseModel
    vae: AutoencoderKL
    icons: Icons
    loras: Path | None

    def painter(self, look: Look, rng: Random) -> Painter:
        """The painter of a look, with the network that draws it."""
        if look is LOOKS[0] or self.loras is None:
            return Painter(self.base, self.base.load("transformer"), self.vae, self.icons, look, rng)
        transformer, layers = install_file(self.base, self.loras / f"{look.name}.safetensors")
        set_scale(layers, LORA_SCALE)
        return Painter(self.base, transformer, self.vae, self.icons, look, rng)


def collect_pictures(studio: Studio, share: float, show: Show) -> list[DrawnPicture]:
    """All pictures to finetune on, or a share of them."""
    rng, found = Random(0), []
    drawn = [(LOOKS[0], DRAWN), *((look, WITH_LORA) for look in LOOKS[1:] if studio.loras)]
    for number, (look, count) in enumerate(drawn):
        show("drawing", number / (len(drawn) + 1), look.name)
        painter = studio.painter(look, rng)
        for canvas in choose_canvases(painter, max(1, round(share * count))):
            steps = rng.choice(STEP_COUNTS) if look is LOOKS[0] else STEP_COUNTS[-1]
            found += draw_canvas(painter, canvas, steps)
    looks = LOOKS if studio.loras else LOOKS[:1]
    show("drawing", len(drawn) / (len(drawn) + 1), "encoded")
    for look in looks:
        painter = studio.painter(look, rng)
        for canvas in choose_canvases(painter, max(1, round(share * ENCODED / len(looks)))):
            found += encode_canvas(painter, canvas)
    return found + encode_patterned(studio, max(1, round(share * PATTERNED)), rng)


def encode_patterned(studio: Studio, count: int, rng: Random) -> list[DrawnPicture]:
    """So many icons under patterns, which reach the canvas's edge as what users' own LoRAs draw may."""
    painter, found = studio.painter(LOOKS[0], rng), list[DrawnPicture]()
    for canvas in choose_canvases(painter, count):
        pictures = torch.stack([cover(each, rng) for each in paint_canvas(painter, canvas, canvas.placements)])
        found += encode(painter.vae, pictures)
    return found


def choose_canvases(painter: Painter, count: int) -> Iterator[CanvasSet]:
    """So many pictures in batches of one grid each, grids as often as they are asked for."""
    grids, shares = zip(*CANVASES, strict=True)
    while count > 0:
        yield choose_pictures(painter, painter.rng.choices(grids, shares)[0], min(BATCH, count))
        count -= BATCH


def draw_latents(transformer: Flux, canvas: CanvasSet, steps: int) -> Tensor:
    """The canvas's pictures in so many steps, latents `[N, 16, h, w]`."""
    device = next(transformer.parameters()).device
    drawn = denoise(transformer, canvas.prompts, canvas.noise.to(device), canvas.grid.size, steps)
    return unpack_latents(drawn.float(), canvas.grid.size)


def draw_canvas(painter: Painter, canvas: CanvasSet, steps: int) -> list[DrawnPicture]:
    """The canvas's pictures as drawn, each with the right one where it was drawn; misread prompts are left out."""
    latents = draw_latents(painter.transformer, canvas, steps)
    seen = decode(painter.vae, latents.to(painter.vae.device, memory_format=torch.channels_last))
    rights = [paint_canvas(painter, canvas, placements) for placements in possible_placements(canvas, steps)]
    errors = torch.stack([(right - seen).square().mean((1, 2, 3)) for right in rights])
    least = errors.min(0)
    return [
        DrawnPicture(latents[number].half().cpu(), to_bytes(rights[int(least.indices[number])][number]))
        for number in range(len(latents))
        if least.values[number] < MOST_ERROR
    ]


def possible_placements(canvas: CanvasSet, steps: int) -> list[Tensor]:
    """Where the icons may have been drawn: as the noise says after one step, anywhere after several."""
    if steps == 1 or canvas.grid.side < SMALLEST_MOVED:
        return [canvas.placements]
    shifts = [torch.tensor([pair]).expand(len(canvas.icons), 2) for pair in product((0, 1), repeat=2)]
    return [find_placements(canvas.grid, each) for each in shifts]


def encode_canvas(painter: Painter, canvas: CanvasSet) -> list[DrawnPicture]:
    """The canvas's pictures as they are, with their own latents."""
    return encode(painter.vae, paint_canvas(painter, canvas, canvas.placements))


def encode(vae: AutoencoderKL, pictures: Tensor) -> list[DrawnPicture]:
    """Pictures `[N, 3, H, W]` in 0..1, with their own latents."""
    latents = encode_pictures(vae, 2 * pictures - 1)
    return [DrawnPicture(one.half().cpu(), to_bytes(two)) for one, two in zip(latents, pictures, strict=True)]


def paint_canvas(painter: Painter, canvas: CanvasSet, placements: Tensor) -> Tensor:
    """Every picture in the look at these placements `[N, 4]`, `[N, 3, H, W]` in 0..1."""
    look = painter.look
    rgb = torch.tensor([COLOURS[look.ground or name] for name in COLOURS])
    icons = painter.icons.pictures[canvas.icons]
    placed = torch.cat([paste(icon[None], canvas.grid, where) for icon, where in zip(icons, placements, strict=True)])
    return look.paint(placed, rgb[canvas.colours]).clamp(0, 1)


def paste(icon: Tensor, grid: Grid, placement: Tensor) -> Tensor:
    """An icon of bytes `[1, 4, 256, 256]` resized and laid on its canvas to the pixel `[1, 4, H, W]` in 0..1.

    `looks.place` would move it by sampling between pixels, which is softer than the pictures that figures compare with.
    """
    side, _, right, down = (round(value) for value in placement.tolist())
    height, width = PIXELS_PER_TOKEN * grid.height, PIXELS_PER_TOKEN * grid.width
    top, left = height // 2 + down - side // 2, width // 2 + right - side // 2
    pads = (left, width - left - side, top, height - top - side)
    return functional.pad(resize(icon.float() / 255, side), pads)  # a negative pad cuts off what leaves the canvas


def to_bytes(picture: Tensor) -> Tensor:
    """`[3, H, W]` in 0..1 as bytes."""
    return (255 * picture).round().to(torch.uint8)
