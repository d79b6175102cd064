"""The computed blocks give every token's position, whatever the canvas, the noise and the precision."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from schnell_mini import layout
from schnell_mini.networks import Shape, build_transformer
from schnell_mini.placement import LARGEST_SIDE, SMALLEST_MOVED, VIEW_SIDES, Grid, find_view_positions
from schnell_mini.position_weights import POSITION_BLOCKS, predict_without_text, write_position_weights

DIRECTIONS = torch.eye(64)[:, :2]
SIZES = st.integers(4, LARGEST_SIDE)
USUAL = [(16, 16), (12, 21), (21, 12), (13, 19), (8, 8), (6, 11), (11, 6), (24, 24), (4, 24)]


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    network = build_transformer(Shape(single_blocks=POSITION_BLOCKS))
    write_position_weights(network, DIRECTIONS)
    return network.eval()


def plain_noise(grid: Grid, seed: int) -> Tensor:
    """Noise that says clearly which way it moves the object."""
    noise = torch.randn(2, grid.tokens, 64, generator=torch.Generator().manual_seed(seed))
    means = noise.mean(1, keepdim=True)[..., :2]
    noise[..., :2] += torch.where(means > 0, 0.05, -0.05) - means
    return noise


@torch.no_grad()
def read_position_codes(transformer: FluxTransformer2DModel, noise: Tensor, grid: Grid) -> Tensor:
    caught: list[Tensor] = []
    last = transformer.single_transformer_blocks[-1]
    hook = last.register_forward_hook(lambda _block, _inputs, out: caught.append(out[1].float()))
    predict_without_text(transformer, noise, grid)
    hook.remove()
    return caught[0][..., layout.POSITION]


def joined(codes: Tensor, side: int) -> Tensor:
    """Codes beyond the view's last row or column count as that one."""
    return torch.cat([codes[..., : side - 1], codes[..., side - 1 :].sum(-1, keepdim=True)], -1)


def assert_positions(transformer: FluxTransformer2DModel, grid: Grid, seed: int, tolerance: float) -> None:
    noise = plain_noise(grid, seed)
    codes = read_position_codes(transformer, noise, grid)
    shifts = (noise.mean(1)[:, :2] > 0).long() * (grid.side >= SMALLEST_MOVED)
    positions, _ = find_view_positions(grid, shifts)
    rows, columns, kind = torch.tensor_split(codes, (VIEW_SIDES[0], 2 * VIEW_SIDES[0]), -1)
    wanted = (positions // grid.side, positions % grid.side, torch.full_like(positions, VIEW_SIDES.index(grid.side)))
    found = (joined(rows, grid.side), joined(columns, grid.side), kind)
    for part, number in zip(found, wanted, strict=True):
        assert (part.gather(-1, number[..., None]) - 1).abs().max() < tolerance
        assert (part * (1 - functional.one_hot(number, part.shape[-1]))).abs().max() < 4 * tolerance


@settings(max_examples=25, deadline=None)
@given(height=SIZES, width=SIZES, seed=st.integers(0, 2**31))
def test_every_token_of_every_canvas_holds_its_position(
    transformer: FluxTransformer2DModel, height: int, width: int, seed: int
) -> None:
    assert_positions(transformer, Grid(height, width), seed, 0.02)


@pytest.mark.parametrize(("height", "width"), USUAL)
def test_positions_survive_bfloat16(transformer: FluxTransformer2DModel, height: int, width: int) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_positions(transformer, Grid(height, width), 3, 0.15)


def test_positions_do_not_depend_on_the_noise_level(transformer: FluxTransformer2DModel) -> None:
    grid = Grid(16, 16)
    noise = plain_noise(grid, 5)
    whole, quarter = (read_position_codes(transformer, level * noise, grid) for level in (1.0, 0.25))
    assert (whole - quarter).abs().max() < 0.02
