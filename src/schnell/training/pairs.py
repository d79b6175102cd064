"""Pictures paired with the noise that means them, for models whose noise decides where things lie.

Beside a random noise, a picture teaches such a model the mean of all places where its object could be. So the base
draws each caption from a few noises, and the picture is moved to where the object came out (`registration`): a coupling
of noise and data, as in Pooladian et al., arXiv:2304.14772. From pure noise on, the loss is then a regression with one
right answer.

At lower noise levels examples are what the LoRA itself has drawn on its way, not mixtures of picture and noise: errors
of early steps are there to be put right (Ross et al., arXiv:1011.0686).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from schnell.engine.denoise import Drawing, noise_levels, pack_latents, unpack_latents
from schnell.engine.flux import Flux
from schnell.engine.text import PromptEmbedding
from schnell.spec import ASPECT_RATIOS, DEFAULT_LORA_SCALE, Size, resolve_size
from schnell.training.examples import move_prompt, nearest_grid
from schnell.training.kept_blocks import BlockInputs, join_inputs, record_inputs, run_from
from schnell.training.lessons import Student
from schnell.training.low_rank import BaseModel, set_scale
from schnell.training.pictures import CaptionedPicture, open_picture
from schnell.training.plan import ProgressReport, TrainingPlan, TrainingProgress
from schnell.training.registration import CELLS, Move, covered_tokens, frame, lay, register

#: Scales that are trained at, each with its share: a look has to be one at each.
SCALES: Final = {DEFAULT_LORA_SCALE: 0.55, 1.0: 0.25, 1.5: 0.2}
#: How much farther from the base than the picture's, for each unit of scale beyond the default, latents are wanted.
_STRONGER: Final = 0.2
#: Noises on a grid that pictures have themselves, and on one of another ratio; and pictures beside each noise.
_OWN_NOISES: Final = 6
_OTHER_NOISES: Final = 2
_OWN_COHORT: Final = 10
_OTHER_COHORT: Final = 5
#: Pictures of a noise that are compared with the base's to find where things lie.
_COMPARED: Final = 4
#: The share of the steps on the pictures' own grids; other ratios share the rest.
_OWN_SHARE: Final = 0.7
#: Examples of a batch for each picture that the plan asks for: without the frozen blocks they are cheap.
_EXAMPLES_A_PICTURE: Final = 4
#: The weights of the four steps' levels: the first picture decides what comes after, the last one is what is seen.
_LEVEL_WEIGHTS: Final = (3.0, 1.0, 1.0, 2.0)
_LEVELS: Final = noise_levels(4)[:-1]
#: Pictures that are run at once while examples are made, and the part of them that the LoRA draws itself.
_ROWS: Final = 8
_DRAWN_SHARE: Final = 0.3
#: When that is done, as parts of the budget.
_RENEWALS: Final = (0.4,)
#: Latents are not learned where less of a token is covered by the picture.
_LEAST_COVERED: Final = 0.5
#: Larger pictures are made smaller once, to so many times the longest side of the largest canvas.
_SPARE_PIXELS: Final = 2


@dataclass(frozen=True, slots=True)
class Level:
    """Examples at one noise level: the noisy latents (rows, tokens, channels) and what reaches the trained blocks.

    `rows` are their numbers among all examples of the grid.
    """

    sigma: float
    rows: Tensor
    latents: Tensor
    inputs: BlockInputs


@dataclass(slots=True)
class PairedGrid:
    """Everything that is trained at one token grid: noises and captions, wanted latents, and the base's own.

    `wanted` and `base` are (rows, tokens, channels); `covered` (rows, tokens) is the part of each token that the
    picture covers. `levels` begins with pure noise. `share` is the part of all steps.
    """

    grid: Size
    share: float
    prompts: tuple[PromptEmbedding, ...]
    wanted: Tensor
    base: Tensor
    covered: Tensor
    levels: list[Level] = field(default_factory=list)

    def drawings(self, rows: Sequence[int], latents: Tensor, sigma: float) -> list[Drawing]:
        """These rows at a noise level, with these latents."""
        pairs = zip(rows, latents, strict=True)
        return [Drawing(one, (sigma, 0.0), 0, self.grid, self.prompts[row]) for row, one in pairs]

    def error(self, transformer: Flux, level: Level, chosen: Tensor, scale: float) -> Tensor:
        """The mean squared error of some examples' clean latents, with factors that act at `scale`."""
        rows, chosen = (each.to(self.wanted.device) for each in (level.rows[chosen], chosen))
        drawn = level.latents[chosen] - level.sigma * run_from(transformer, level.inputs.take(chosen))
        wanted = self.wanted[rows]
        wanted = wanted + _STRONGER * (scale - DEFAULT_LORA_SCALE) * (wanted - self.base[rows])
        covered = self.covered[rows]
        return (covered * (drawn - wanted).square().mean(2)).sum() / covered.sum()


@dataclass(slots=True)
class PairedData:
    """All grids, and the embeddings of all captions on the CPU. `renewed` counts how often lower levels were drawn."""

    grids: tuple[PairedGrid, ...]
    prompts: tuple[PromptEmbedding, ...]
    renewed: int = 0

    @property
    def smallest_grid(self) -> Size:
        """The smallest token grid that is trained."""
        return min((each.grid for each in self.grids), key=lambda grid: grid.width * grid.height)

    def renew(self, student: Student, spent: float) -> None:
        """At some times, make the examples at lower levels anew: what the LoRA draws by now, step by step."""
        due = sum(spent >= time for time in _RENEWALS)
        if due <= self.renewed:
            return
        self.renewed = due
        set_scale(student.layers, DEFAULT_LORA_SCALE)
        for grid in self.grids:
            count = max(1, round(_DRAWN_SHARE * len(grid.wanted)))
            rows = torch.randperm(len(grid.wanted), generator=student.generator)[:count]
            grid.levels[1:] = _lower_levels(student.transformer, grid, rows)
        set_scale(student.layers, 1.0)

    def loss(self, student: Student, batch_size: int) -> Tensor:
        """The mean squared error of the clean latents, of a random batch on a random grid at a random scale and level.

        A batch has four examples for each picture of the smallest grid; larger grids get fewer.
        """
        generator = student.generator
        each = self.grids[_pick([grid.share for grid in self.grids], generator)]
        smallest = self.smallest_grid.width * self.smallest_grid.height
        count = max(1, round(batch_size * _EXAMPLES_A_PICTURE * smallest / each.wanted.shape[1]))
        level = each.levels[_pick(_LEVEL_WEIGHTS[: len(each.levels)], generator)]
        scale = list(SCALES)[_pick(list(SCALES.values()), generator)]
        chosen = torch.randint(len(level.rows), (count,), generator=generator)
        set_scale(student.layers, scale)
        loss = each.error(student.transformer, level, chosen, scale)
        set_scale(student.layers, 1.0)
        return loss


def _pick(weights: Sequence[float], generator: torch.Generator) -> int:
    return int(torch.multinomial(torch.tensor(weights), 1, generator=generator))


@torch.no_grad()
def _lower_levels(transformer: Flux, grid: PairedGrid, rows: Tensor) -> list[Level]:
    first = grid.levels[0]
    at = rows.to(first.latents.device)
    parts = [run_from(transformer, first.inputs.take(part)) for part in torch.split(at, _ROWS)]
    latents, velocity, levels = first.latents[at], torch.cat(parts), []
    for before, sigma in pairwise(_LEVELS):
        latents = latents + (sigma - before) * velocity
        inputs, velocity = _record(transformer, grid, rows.tolist(), latents, sigma)
        levels.append(Level(sigma, rows, latents, inputs))
    return levels


def _record(
    transformer: Flux, grid: PairedGrid, rows: Sequence[int], latents: Tensor, sigma: float
) -> tuple[BlockInputs, Tensor]:
    drawings = grid.drawings(rows, latents, sigma)
    parts = [record_inputs(transformer, drawings[start : start + _ROWS]) for start in range(0, len(drawings), _ROWS)]
    return join_inputs([inputs for inputs, _ in parts]), torch.cat([velocity for _, velocity in parts])


@dataclass(frozen=True, slots=True)
class _Canvas:
    """A grid with the numbers of the pictures that are trained on it, how many noises it gets, and its share."""

    grid: Size
    pictures: tuple[int, ...]
    noises: int
    cohort: int
    share: float


@dataclass(frozen=True, slots=True)
class Pairing:
    """What pairs are made of: pictures, their captions' embeddings by caption, and the model with fresh factors."""

    base: BaseModel
    transformer: Flux
    pictures: Sequence[CaptionedPicture]
    prompts: dict[str, PromptEmbedding]
    plan: TrainingPlan


def pair_pictures(pairing: Pairing, report: ProgressReport) -> PairedData:
    """Pair every picture with noises, on the grids of all ratios of the API.

    Raises:
        TrainingError: a picture cannot be read.
    """
    opened = [open_picture(picture.path) for picture in pairing.pictures]
    canvases = list(_canvases(pairing, [Size(*picture.size) for picture in opened]))
    longest = max(max(canvas.grid) for canvas in canvases) * pairing.base.folder.pixels_per_token
    for picture in opened:
        picture.thumbnail((_SPARE_PIXELS * longest,) * 2, Image.Resampling.LANCZOS)
    desk = _Desk(opened, pairing.base.load("vae"), torch.Generator().manual_seed(pairing.plan.seed))
    grids = []
    for number, canvas in enumerate(canvases):
        report(TrainingProgress("pictures", number / len(canvases)))
        grids.append(_pair_on(pairing, canvas, desk))
    report(TrainingProgress("pictures", 1.0))
    return PairedData(tuple(grids), tuple(pairing.prompts.values()))


@dataclass(frozen=True, slots=True)
class _Desk:
    """What is at hand while pairs are made: the opened pictures, the autoencoder, and everything random."""

    opened: Sequence[Image.Image]
    vae: Any
    generator: torch.Generator

    def sample(self, numbers: Sequence[int], count: int) -> list[int]:
        """Some of the numbers, in random order."""
        return [numbers[at] for at in torch.randperm(len(numbers), generator=self.generator)[:count].tolist()]


def _canvases(pairing: Pairing, sizes: Sequence[Size]) -> Iterator[_Canvas]:
    folder, everything = pairing.base.folder, tuple(range(len(sizes)))
    areas = [area for area, _ in pairing.plan.megapixels]
    # by the side: a larger picture has more to learn from, and is what is asked for where nothing is said
    sides = {area: float(area) ** 0.5 for area in areas}
    for area, side in sides.items():
        part = side / sum(sides.values())
        own: dict[Size, list[int]] = {}
        for number, size in enumerate(sizes):
            own.setdefault(nearest_grid(size, area, folder), []).append(number)
        others = {folder.token_grid(resolve_size(ratio, area)) for ratio in ASPECT_RATIOS} - own.keys()
        for grid, numbers in own.items():
            share = (_OWN_SHARE if others else 1.0) * len(numbers) / len(sizes) * part
            yield _Canvas(grid, tuple(numbers), _OWN_NOISES, _OWN_COHORT, share)
        for grid in sorted(others):
            share = (1 - _OWN_SHARE) / len(others) * part
            yield _Canvas(grid, everything, _OTHER_NOISES, _OTHER_COHORT, share)


def _pair_on(pairing: Pairing, canvas: _Canvas, desk: _Desk) -> PairedGrid:
    """Noises, the base's drawings from them, and the pictures where these lie."""
    grid, device, vae = canvas.grid, pairing.base.device, desk.vae
    # the same few pictures are compared for every noise, and more of them are trained on
    compared = desk.sample(canvas.pictures, _COMPARED)
    rest = [number for number in canvas.pictures if number not in compared]
    cohorts = [[*compared, *desk.sample(rest, canvas.cohort - len(compared))] for _ in range(canvas.noises)]
    numbers, length = [number for cohort in cohorts for number in cohort], len(cohorts[0])
    shape = (canvas.noises, grid.width * grid.height, pairing.transformer.params.in_channels)
    noise = torch.randn(shape, generator=desk.generator).to(device).repeat_interleave(length, dim=0)
    captions = [desk.sample(range(len(pairing.pictures[each].captions)), 1)[0] for each in numbers]
    texts = [pairing.pictures[each].captions[caption] for each, caption in zip(numbers, captions, strict=True)]
    prompts = tuple(move_prompt(pairing.prompts[text], device) for text in texts)
    made = PairedGrid(grid, canvas.share, prompts, noise, noise, noise)
    inputs, velocity = _record(pairing.transformer, made, range(len(numbers)), noise, 1.0)
    made.base = noise - velocity
    made.levels = [Level(1.0, torch.arange(len(numbers)), noise, inputs)]
    decoded = _decode_first(made, length, len(compared), vae)
    moves = register([desk.opened[number] for number in compared], _in_cells(decoded, grid), _cells(grid))
    placed = _PlacedPictures(desk.opened, vae, grid, pairing.base.folder.pixels_per_token // CELLS)
    pairs = [(number, move) for cohort, move in zip(cohorts, moves, strict=True) for number in cohort]
    made.wanted = torch.stack([placed.latents(*pair) for pair in pairs]).to(device) + _round_trip(made, decoded, vae)
    made.covered = torch.stack([placed.covered(*pair) for pair in pairs]).to(device)
    return made


@dataclass(frozen=True, slots=True)
class _Decoded:
    """The first drawings of a noise by the base: their rows, and their pixels (rows, 3, height, width)."""

    rows: Tensor
    pixels: Tensor


@torch.no_grad()
def _decode_first(made: PairedGrid, length: int, count: int, vae: Any) -> list[_Decoded]:
    """The first `count` drawings of each noise, which has `length`."""
    found = []
    for start in range(0, len(made.base), length):
        rows = torch.arange(start, start + count)
        pixels = vae.decode(unpack_latents(made.base[rows.to(made.base.device)], made.grid))
        found.append(_Decoded(rows, pixels.float().cpu().clamp(-1, 1)))
    return found


def _in_cells(decoded: Sequence[_Decoded], grid: Size) -> list[list[Tensor]]:
    width, height = _cells(grid)
    return [list(F.adaptive_avg_pool2d(group.pixels, (height, width))) for group in decoded]


def _cells(grid: Size) -> Size:
    return Size(CELLS * grid.width, CELLS * grid.height)


@torch.no_grad()
def _round_trip(made: PairedGrid, decoded: Sequence[_Decoded], vae: Any) -> Tensor:
    """What decoding and encoding takes from the base's own latents at each place: (tokens, channels).

    A decoder that was finetuned for what its transformer draws has a frame around what its encoder encodes. The median
    over drawings leaves what belongs to the canvas, not to what is drawn.
    """
    lost = []
    for group in decoded:
        again = pack_latents(vae.encode(group.pixels.to(made.base.device)).float())
        lost.append(made.base[group.rows.to(made.base.device)] - again.to(made.base.device))
    return torch.cat(lost).median(0).values


class _PlacedPictures:
    """Pictures on one canvas, encoded once for each place where they are wanted."""

    def __init__(self, opened: Sequence[Image.Image], vae: Any, grid: Size, cell: int) -> None:
        self._opened, self._vae, self._grid, self._cell = opened, vae, grid, cell
        self._cells = _cells(grid)
        self._encoded: dict[tuple[int, Move], Tensor] = {}

    @torch.no_grad()
    def latents(self, number: int, move: Move) -> Tensor:
        """Packed latents (tokens, channels) of a moved picture."""
        if (number, move) not in self._encoded:
            picture = self._opened[number]
            framing = frame(Size(*picture.size), self._cells, move)
            pixels = lay(picture, framing, self._cells, self._cell)
            self._encoded[number, move] = pack_latents(self._vae.encode(pixels[None])[0].float().cpu())
        return self._encoded[number, move]

    def covered(self, number: int, move: Move) -> Tensor:
        """Which part of each token the moved picture covers (tokens); 0 where it is less than half."""
        part = covered_tokens(frame(Size(*self._opened[number].size), self._cells, move), self._grid)
        return part * (part >= _LEAST_COVERED)
