"""What a bundled LoRA learns from: noise, prompts, and each icon painted where the base will draw it.

The noise decides where the base draws an icon (`placement`). So for every noise there is one right picture in a look,
on every canvas, and from pure noise on the loss is a plain regression.
"""

from dataclasses import dataclass
from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from schnell.engine.denoise import Drawing, pack_latents, predict_velocity
from schnell.engine.flux import Flux
from schnell.engine.text import PromptEmbedding
from schnell.training.examples import embed_prompts
from schnell.training.low_rank import BaseModel
from schnell_mini import layout
from schnell_mini.captions import COLOURS, on_background
from schnell_mini.last_blocks import BlockInputs, record_inputs
from schnell_mini.latents import PIXELS_PER_LATENT, encode_pictures, icon_size
from schnell_mini.learned.looks import LOOKS, Look, place, plain
from schnell_mini.pictures import Icons, draw_evenly
from schnell_mini.placement import SMALLEST_MOVED, Grid, align_noise, half_token
from schnell_mini.position_weights import NOISE_HEAD

#: Canvases, each with its share of the pictures: the squares and the ratios of 1 MP and of 0.25 MP.
CANVASES = (
    (Grid(16, 16), 1601),
    (Grid(8, 8), 400),
    *((Grid(*sides), 120) for sides in ((12, 21), (21, 12))),
    *((Grid(*sides), 60) for sides in ((13, 19), (19, 13), (14, 17), (17, 14))),
    *((Grid(*sides), 80) for sides in ((6, 11), (11, 6))),
    *((Grid(*sides), 40) for sides in ((7, 10), (10, 7), (7, 9), (9, 7))),
)
COLOURED_SHARE = 0.5
UNTRIGGERED_SHARE = 0.1
PIXELS_PER_TOKEN = 2 * PIXELS_PER_LATENT
#: A painted pixel that differs less from the ground is ground.
LEAST_DIFFERENCE = 4 / 255
GROUND_PROMPTS = ("red apple", "pizza", "cat face", "house", "star", "automobile", "soccer ball", "key")
NEAR_GROUND = 0.01


@dataclass(frozen=True)
class CanvasSet:
    """Pictures on one grid: numbers of icons and colours `[N]`, `looks.place`'s placements `[N, 4]`, noise, prompts."""

    grid: Grid
    icons: Tensor
    colours: Tensor
    placements: Tensor
    noise: Tensor
    prompts: tuple[PromptEmbedding, ...]

    def drawings(self, latents: Tensor, levels: Tensor) -> list[Drawing]:
        """These pictures at noise levels `[N]`, with latents `[N, T, 64]`."""
        rows = zip(latents, levels.tolist(), self.prompts, strict=True)
        return [Drawing(one, (level, 0.0), 0, self.grid.size, prompt) for one, level, prompt in rows]


@dataclass(frozen=True)
class Examples:
    """Recorded pictures of one grid: what the last blocks hear, the wanted latents `[N, T, 64]`, and where the look
    paints anything, `[N, T, 64]`; elsewhere is ground.
    """

    canvas: CanvasSet
    inputs: BlockInputs
    wanted: Tensor
    painted: Tensor


@dataclass(frozen=True)
class Painter:
    """What examples of one look are made with; `trigger` is its word in prompts."""

    base: BaseModel
    transformer: Flux
    vae: AutoencoderKL
    icons: Icons
    look: Look
    rng: Random

    @property
    def trigger(self) -> str:
        """The word that asks for the look; none is needed for the base's own."""
        return "" if self.look is LOOKS[0] else self.look.phrases[0]


def read_noise_directions(transformer: Flux) -> Tensor:
    """The directions `[64, 2]` of the noise that decide placement, from the head that reads them."""
    width = transformer.params.hidden_size
    first: torch.nn.Module = transformer.double_blocks[0]
    weight = first.get_parameter("img_attn.qkv.weight").detach().float()
    start = 2 * width + NOISE_HEAD * transformer.params.head_dim
    rows = weight[start : start + 2, layout.NOISE]
    return functional.normalize(rows).T.contiguous().cpu()


def choose_pictures(painter: Painter, grid: Grid, count: int) -> CanvasSet:
    """Random icons, grounds and placements, each with noise that stands for its placement."""
    rng, labels = painter.rng, painter.icons.labels
    chosen = torch.tensor(draw_evenly(rng, len(labels), count))
    coloured = range(1, len(COLOURS))
    colours = torch.tensor([rng.choice(coloured) if rng.random() < COLOURED_SHARE else 0 for _ in range(count)])
    generator = torch.Generator().manual_seed(rng.randrange(2**30))
    noise = torch.randn(count, grid.tokens, layout.TOKEN_CHANNELS, generator=generator)
    shifts = torch.zeros(count, 2, dtype=torch.long)
    if grid.side >= SMALLEST_MOVED:
        shifts = torch.tensor([[rng.randrange(2), rng.randrange(2)] for _ in range(count)])
        noise = align_noise(noise, read_noise_directions(painter.transformer), shifts)
    pairs = zip(chosen.tolist(), colours.tolist(), strict=True)
    texts = [write_prompt(rng, labels[icon].name, list(COLOURS)[colour], painter.trigger) for icon, colour in pairs]
    prompts = tuple(embed_prompts(texts, painter.base))
    return CanvasSet(grid, chosen, colours, find_placements(grid, shifts), noise, prompts)


def write_prompt(rng: Random, name: str, colour: str, trigger: str) -> str:
    """A name with its ground, and most often the trigger word before or behind it."""
    text = name if colour == "white" else on_background(rng, name, colour)
    chance = rng.random()
    if not trigger or chance < UNTRIGGERED_SHARE:
        return text
    return f"{trigger}, {text}" if chance < 0.4 else f"{text}, {trigger}"


def find_placements(grid: Grid, shifts: Tensor) -> Tensor:
    """Where the base draws icons moved by `shifts` `[N, 2]`, as `looks.place` takes it `[N, 4]`."""
    side = PIXELS_PER_TOKEN * grid.side
    corner = PIXELS_PER_TOKEN * (torch.tensor([grid.corner]) + shifts) - PIXELS_PER_LATENT * half_token(grid)
    middle = PIXELS_PER_TOKEN / 2 * torch.tensor([[grid.height, grid.width]])
    down, right = (corner + side / 2 - middle).T
    size = torch.full_like(down, float(icon_size(side)))
    return torch.stack([size, torch.zeros_like(size), right, down], 1)


def record_examples(painter: Painter, canvas: CanvasSet) -> Examples:
    """The pictures from pure noise, and what they should be in the look."""
    device, levels = painter.base.device, torch.ones(len(canvas.icons))
    inputs = record_inputs(painter.transformer, canvas.drawings(canvas.noise.to(device), levels))
    drawn, painted = (part.to(device) for part in paint_latents(painter, canvas))
    own = painter.look.ground
    ground = inputs.clean if own is None else find_ground(painter, canvas.grid, own)
    return Examples(canvas, inputs, torch.where(painted, drawn, ground), painted)


@torch.no_grad()
def paint_latents(painter: Painter, canvas: CanvasSet, batch: int = 8) -> tuple[Tensor, Tensor]:
    """The painted pictures' latents `[N, T, 64]`, and which of them are more than ground."""
    size = (PIXELS_PER_TOKEN * canvas.grid.height, PIXELS_PER_TOKEN * canvas.grid.width)
    look, vae, icons = painter.look, painter.vae, painter.icons
    rgb = torch.tensor([COLOURS[look.ground or name] for name in COLOURS])
    latents, masks = [], []
    for part in torch.split(torch.arange(len(canvas.icons)), batch):
        placed = place(icons.pictures[canvas.icons[part]].float() / 255, size, canvas.placements[part])
        grounds = rgb[canvas.colours[part]]
        picture = look.paint(placed, grounds)
        encoded = encode_pictures(vae, 2 * picture - 1).cpu()
        latents.append(pack_latents(encoded.contiguous()))
        changed = torch.maximum((picture - plain(grounds, picture)).abs().amax(1, keepdim=True), placed[:, 3:])
        touched = (functional.max_pool2d(changed, PIXELS_PER_LATENT) > LEAST_DIFFERENCE).float()
        # the encoder sees a little of its neighbours
        touched = functional.max_pool2d(touched, 3, 1, 1).expand(-1, encoded.shape[1], -1, -1)
        masks.append(pack_latents(touched.contiguous()) > 0)
    return torch.cat(latents), torch.cat(masks)


@torch.inference_mode()
def find_ground(painter: Painter, grid: Grid, colour: str) -> Tensor:
    """The base's own latents of a ground `[T, 64]`: at each token the mean over pictures that show no object there.

    The decoder was finetuned on these; it draws encoded plain grounds with marks at the canvas's corners.
    """
    prompts = embed_prompts([f"{name} on a {colour} background" for name in GROUND_PROMPTS], painter.base)
    shape = (len(prompts), grid.tokens, layout.TOKEN_CHANNELS)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(painter.base.device)
    rows = zip(noise, prompts, strict=True)
    drawings = [Drawing(one, (1.0, 0.0), 0, grid.size, prompt) for one, prompt in rows]
    clean = noise - predict_velocity(painter.transformer, drawings)
    middle = clean[:, : grid.width].flatten(0, 1).median(0).values
    near = ((clean - middle).square().mean(2, keepdim=True) < NEAR_GROUND).float()
    few = 1e-3
    with torch.inference_mode(mode=False):
        return ((near * clean).sum(0) + few * middle).clone() / (near.sum(0) + few).clone()
