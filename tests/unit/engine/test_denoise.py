import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from hypothesis import given
from hypothesis import strategies as st

from schnell.engine.denoise import initial_noise, noise_levels, pack_latents, position_ids, unpack_latents
from schnell.spec import Size

grids = st.builds(Size, st.integers(1, 8), st.integers(1, 8))


@given(grids, st.lists(st.integers(1, 3), max_size=2))
def test_unpacking_is_the_inverse_of_packing(grid: Size, batch: list[int]) -> None:
    latents = torch.randn(*batch, 16, 2 * grid.height, 2 * grid.width)
    tokens = pack_latents(latents)
    assert tokens.shape == (*batch, grid.height * grid.width, 64)
    assert torch.equal(unpack_latents(tokens, grid), latents)


@given(grids, st.integers(1, 3))
def test_packing_is_diffusers_packing(grid: Size, count: int) -> None:
    latents = torch.randn(count, 16, 2 * grid.height, 2 * grid.width)
    theirs = FluxPipeline._pack_latents(latents, count, 16, 2 * grid.height, 2 * grid.width)
    assert torch.equal(pack_latents(latents), theirs)
    assert torch.equal(pack_latents(latents[0]), theirs[0])


@given(grids, st.integers(1, 3))
def test_unpacking_is_diffusers_unpacking(grid: Size, count: int) -> None:
    tokens = torch.randn(count, grid.height * grid.width, 64)
    theirs = FluxPipeline._unpack_latents(tokens, 16 * grid.height, 16 * grid.width, vae_scale_factor=8)
    assert torch.equal(unpack_latents(tokens, grid), theirs)


@given(grids)
def test_positions_are_diffusers_positions(grid: Size) -> None:
    theirs = FluxPipeline._prepare_latent_image_ids(1, grid.height, grid.width, torch.device("cpu"), torch.float32)
    ours = position_ids(grid, 5)
    assert torch.equal(ours[5:], theirs)
    # and FLUX gives every text token the same position
    assert not ours[:5].any()


@given(st.integers(1, 4))
def test_noise_levels_are_diffusers_sigmas(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    assert torch.allclose(torch.tensor(noise_levels(steps)), scheduler.sigmas, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_noise_is_decided_by_the_seed_alone(seed: int) -> None:
    assert torch.equal(initial_noise(seed, Size(2, 3)), initial_noise(seed, Size(2, 3)))


def test_different_seeds_give_different_noise() -> None:
    assert not torch.equal(initial_noise(0, Size(2, 3)), initial_noise(1, Size(2, 3)))
