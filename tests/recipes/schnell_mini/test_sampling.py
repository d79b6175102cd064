"""The recipe's sampling is the engine's; here it is compared with the formulae written out."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from schnell.engine.denoise import initial_noise, pack_latents, position_ids, predict_velocity, unpack_latents
from schnell.engine.text import PromptEmbedding
from schnell.spec import Size
from schnell_mini.networks import Shape, as_velocity, build_transformer
from schnell_mini.sampling import denoise, start_drawings
from schnell_mini.text_models import as_embeddings

SIDES = st.integers(1, 12)
GRID = Size(5, 3)


def pack(latents: Tensor) -> Tensor:
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def grid_positions(grid: Size) -> Tensor:
    ids = torch.zeros(grid.height, grid.width, 3)
    ids[..., 1] += torch.arange(grid.height)[:, None]
    ids[..., 2] += torch.arange(grid.width)[None]
    return ids.reshape(-1, 3)


def velocity(
    transformer: FluxTransformer2DModel, tokens: Tensor, states: Tensor, pooled: Tensor, times: Tensor
) -> Tensor:
    answer: Tensor = transformer(
        hidden_states=tokens,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=times,
        img_ids=grid_positions(GRID),
        txt_ids=torch.zeros(states.shape[1], 3),
        return_dict=False,
    )[0]
    return answer


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return build_transformer(Shape(width=64, double_blocks=1, single_blocks=1)).eval()


@pytest.fixture
def conditioning() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 6, 64, generator=generator), torch.randn(3, 64, generator=generator)


@pytest.fixture
def prompts(conditioning: tuple[Tensor, Tensor]) -> list[PromptEmbedding]:
    return as_embeddings(*conditioning)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, 15, 64, generator=torch.Generator().manual_seed(2))


@given(count=st.integers(1, 4), height=SIDES, width=SIDES, seed=st.integers(0, 2**31))
def test_packing_is_a_view_of_two_by_two_squares(count: int, height: int, width: int, seed: int) -> None:
    latents = torch.randn(count, 16, 2 * height, 2 * width, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(pack_latents(latents), pack(latents))
    assert torch.equal(unpack_latents(pack(latents), Size(width, height)), latents)


@given(height=SIDES, width=SIDES)
def test_positions_are_rows_and_columns(height: int, width: int) -> None:
    grid = Size(width, height)
    assert torch.equal(position_ids(grid, 0), grid_positions(grid))


@given(seed=st.integers(0, 2**31), height=SIDES, width=SIDES)
def test_noise_is_what_a_cpu_generator_draws_for_one_picture(seed: int, height: int, width: int) -> None:
    drawn = torch.randn(1, 16, 2 * height, 2 * width, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(initial_noise(seed, Size(width, height)), pack(drawn)[0])


@torch.no_grad()
def test_every_picture_has_its_own_time(
    transformer: FluxTransformer2DModel,
    prompts: list[PromptEmbedding],
    conditioning: tuple[Tensor, Tensor],
    tokens: Tensor,
) -> None:
    times = [1.0, 0.37, 0.2]
    drawings = start_drawings(prompts, tokens, [(time, 0.0) for time in times], GRID)
    predicted = predict_velocity(as_velocity(transformer), drawings)
    assert torch.equal(predicted, velocity(transformer, tokens, *conditioning, torch.tensor(times)))


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_denoising_is_euler_steps_of_equal_length(
    transformer: FluxTransformer2DModel,
    prompts: list[PromptEmbedding],
    conditioning: tuple[Tensor, Tensor],
    tokens: Tensor,
    steps: int,
) -> None:
    wanted = tokens
    for step in range(steps):
        times = torch.full((3,), 1 - step / steps)
        wanted = wanted - velocity(transformer, wanted, *conditioning, times) / steps
    assert torch.allclose(denoise(as_velocity(transformer), prompts, tokens, GRID, steps), wanted, atol=1e-6)


def test_denoised_latents_can_be_trained_on(
    transformer: FluxTransformer2DModel, prompts: list[PromptEmbedding], tokens: Tensor
) -> None:
    latents = unpack_latents(denoise(as_velocity(transformer), prompts, tokens, GRID, 1), GRID)
    layer = torch.nn.Conv2d(16, 1, 1)
    torch.autograd.backward(layer(latents).sum())
    assert layer.weight.grad is not None


def test_the_predicted_velocity_has_gradients(
    transformer: FluxTransformer2DModel, prompts: list[PromptEmbedding], tokens: Tensor
) -> None:
    drawings = start_drawings(prompts, tokens, [(1.0, 0.0)] * 3, GRID)
    torch.autograd.backward(predict_velocity(as_velocity(transformer), drawings).pow(2).sum())
    assert all(parameter.grad is not None for parameter in transformer.proj_out.parameters())
    transformer.zero_grad()
