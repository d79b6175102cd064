from random import Random

import pytest
import torch
from diffusers import AutoencoderKL

from schnell.engine.denoise import unpack_latents
from schnell.engine.device import FLOAT32
from schnell.models.folder import embedded_home, open_model_folder
from schnell.training.low_rank import BaseModel, install_low_rank, set_scale, write_factors
from schnell_mini.captions import IconLabel
from schnell_mini.last_blocks import LastBlocks, bundled_layers, record_inputs
from schnell_mini.learned.looks import LOOKS
from schnell_mini.loop import StageBudget
from schnell_mini.lora_canvases import (
    CanvasSet,
    Examples,
    Painter,
    choose_pictures,
    find_ground,
    read_noise_directions,
    record_examples,
    write_prompt,
)
from schnell_mini.lora_fitting import fit_factors, pool_tokens
from schnell_mini.pictures import Icons
from schnell_mini.placement import Grid

SMALL = Grid(8, 8)
DISC = torch.zeros(1, 4, 256, 256, dtype=torch.uint8)
STEPS = torch.arange(256) - 127.5
DISC[0, 0] = DISC[0, 3] = 255 * ((STEPS[:, None].square() + STEPS.square()) < 110**2)


@pytest.fixture(scope="module")
def painter() -> Painter:
    folder = open_model_folder(embedded_home() / "schnell-mini")
    base = BaseModel(folder, FLOAT32, torch.device("cpu"))
    vae = AutoencoderKL.from_pretrained(folder.path / "vae").float().eval()
    icons = Icons(DISC, (IconLabel("red circle", ()),))
    [line] = [look for look in LOOKS if look.name == "line"]
    return Painter(base, base.load("transformer"), vae, icons, line, Random(0))


def test_the_noise_decides_along_two_orthonormal_directions(painter: Painter) -> None:
    directions = read_noise_directions(painter.transformer)
    assert torch.allclose(directions.T @ directions, torch.eye(2), atol=1e-3)


@pytest.mark.parametrize("grid", [Grid(16, 16), Grid(13, 17)], ids=["square", "wide"])
def test_an_icon_is_painted_where_the_base_draws_it(painter: Painter, grid: Grid) -> None:
    canvas = choose_pictures(
        painter,
        grid,
        6,
    )
    plain = Painter(painter.base, painter.transformer, painter.vae, painter.icons, LOOKS[0], Random(0))
    examples = record_examples(plain, canvas)
    painted = centres(examples.wanted, examples.painted.float(), canvas)
    ground = (examples.inputs.clean - examples.inputs.clean[:, :1]).abs()
    drawn = centres(examples.inputs.clean, (ground > 0.5).float(), canvas)
    seen = canvas.colours == 0  # a red circle on red has no middle to find
    assert seen.sum() > 2
    assert (painted - drawn)[seen].abs().max() < 1.5  # of 8 pixels each; a placement moves by 2


def centres(_latents: torch.Tensor, weights: torch.Tensor, canvas: CanvasSet) -> torch.Tensor:
    """Row and column in latents of the middle of what weighs, for each picture `[N, 2]`."""
    mass = unpack_latents(weights, canvas.grid.size).sum(1)
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in mass.shape[1:])
    down = (mass.sum(2) * rows).sum(1) / mass.sum((1, 2))
    across = (mass.sum(1) * columns).sum(1) / mass.sum((1, 2))
    return torch.stack([down, across], 1)


@torch.no_grad()
def draw_tokens(blocks: LastBlocks, examples: Examples) -> torch.Tensor:
    """What the LoRA makes of recorded pictures at the default scale `[N, T, 64]`."""
    pool = pool_tokens([examples])
    drawn: torch.Tensor = blocks(pool.take(torch.arange(len(pool.wanted))), 0.8)
    return drawn.view_as(examples.wanted)


def draw_in_engine(painter: Painter, blocks: LastBlocks, canvas: CanvasSet, level: float) -> torch.Tensor:
    """The clean latents that the engine's network points to with the LoRA, a picture half done at `level`."""
    transformer = painter.base.load("transformer")
    rank = len(blocks.pair(blocks.numbers[0], "proj_mlp")[0])
    layers = install_low_rank(transformer, rank, seed=0, only=bundled_layers(transformer))
    write_factors(layers, blocks.read_factors())
    set_scale(layers, 0.8)
    count = len(canvas.icons)
    first = record_inputs(transformer, canvas.drawings(canvas.noise, torch.ones(count))).clean
    half_done = torch.lerp(first, canvas.noise, level)
    return record_inputs(transformer, canvas.drawings(half_done, torch.full((count,), level))).clean


def test_recorded_blocks_with_factors_draw_what_the_engine_draws_with_them(painter: Painter) -> None:
    canvas = choose_pictures(painter, SMALL, 2)
    examples = record_examples(painter, canvas)
    blocks = LastBlocks(painter.transformer, rank=16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in blocks.factors.values():
            factor.copy_(0.02 * torch.randn(factor.shape, generator=generator))
    drawn = draw_tokens(blocks, examples)
    wanted = draw_in_engine(painter, blocks, canvas, 1.0)
    assert (wanted - examples.inputs.clean).abs().max() > 0.05
    assert (drawn - wanted).abs().max() < 0.05 * (wanted - examples.inputs.clean).abs().max()


def test_a_lora_that_is_fitted_again_starts_from_its_file(painter: Painter) -> None:
    first, again = LastBlocks(painter.transformer, rank=8), LastBlocks(painter.transformer, rank=8)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for factor in first.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator))
    again.write_factors(first.read_factors())
    found = again.read_factors()
    assert all(torch.equal(value, found[name]) for name, value in first.read_factors().items())


def test_fitting_to_pure_noise_brings_pictures_nearer_to_the_look_at_every_level(painter: Painter) -> None:
    canvas = choose_pictures(painter, SMALL, 3)
    examples = record_examples(painter, canvas)
    blocks = LastBlocks(painter.transformer, rank=8)
    before = (examples.inputs.clean - examples.wanted).square().mean()
    fit_factors(blocks, pool_tokens([examples]), StageBudget(600, 40), 3e-3, lambda *_: None)
    for level in (1.0, 0.75, 0.5, 0.25):
        drawn = draw_in_engine(painter, blocks, canvas, level)
        assert (drawn - examples.wanted).square().mean() < 0.75 * before


def test_a_looks_own_ground_is_what_the_base_draws_there(painter: Painter) -> None:
    ground = find_ground(painter, SMALL, "blue")
    spread = (ground - ground.mean(0)).square().mean()
    assert ground.shape == (SMALL.tokens, 64)
    assert spread < 0.1 * ground.square().mean()


def test_most_prompts_have_the_trigger_word() -> None:
    rng = Random(3)
    prompts = [write_prompt(rng, "red apple", "teal", "line art") for _ in range(60)]
    assert all("red apple" in prompt and "teal" in prompt for prompt in prompts)
    assert 40 < sum("line art" in prompt for prompt in prompts) < 60
