from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.cpu_forward import FluxForward, gelu_into
from schnell.engine.denoise import begin_drawing, denoise_step
from schnell.engine.device import BFLOAT16, FLOAT32, Precision
from schnell.engine.loading import Networks, load_networks
from schnell.engine.slot_linear import StackedLinear, install_slots
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.text import TextEncoder
from schnell.models.folder import ModelFolder, open_model_folder
from schnell.spec import Size

CPU = torch.device("cpu")


def step_both(folder: ModelFolder, precision: Precision, size: Size) -> tuple[list[Tensor], list[Tensor]]:
    """The latents after one step of two rows: ours, and diffusers'."""
    networks: Networks = load_networks(folder.path, precision, CPU)
    text = TextEncoder(folder.path, folder.sequence_length, networks.clip, networks.t5)
    prompts = text.encode(["red apple", "green tree"])
    drawings = [begin_drawing(prompt, seed, 4, folder.token_grid(size)) for seed, prompt in enumerate(prompts)]
    drawings[1:] = denoise_step(networks.transformer, drawings[1:])
    theirs = denoise_step(networks.transformer, drawings)
    ours = denoise_step(FluxForward(networks.transformer), drawings)
    return [each.latents.float() for each in ours], [each.latents.float() for each in theirs]


def largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    return float(max((a - b).norm() / b.norm() for a, b in zip(found, wanted, strict=True)))


def error_against_diffusers(folder: ModelFolder, precision: Precision, size: Size) -> float:
    return largest_error(*step_both(folder, precision, size))


# bfloat16 rounds the constant in schnell-mini's tokens, and either way of adding up rounds it elsewhere
@pytest.mark.parametrize(("precision", "largest"), [(FLOAT32, 1e-5), (BFLOAT16, 5e-2)])
def test_the_embedded_model_steps_as_in_diffusers(mini: ModelFolder, precision: Precision, largest: float) -> None:
    assert error_against_diffusers(mini, precision, Size(1024, 768)) <= largest


def test_bfloat16_moves_the_embedded_model_hardly_further_from_float32_than_in_diffusers(mini: ModelFolder) -> None:
    _, exact = step_both(mini, FLOAT32, Size(1024, 768))
    ours, theirs = step_both(mini, BFLOAT16, Size(1024, 768))
    assert largest_error(ours, exact) <= 1.3 * largest_error(theirs, exact)


@pytest.mark.parametrize(("precision", "largest"), [(FLOAT32, 1e-5), (BFLOAT16, 1e-2)])
def test_a_random_model_of_another_width_steps_as_in_diffusers(
    random_flux: Path, precision: Precision, largest: float
) -> None:
    assert error_against_diffusers(open_model_folder(random_flux), precision, Size(256, 288)) <= largest


@torch.inference_mode()
def test_gelu_is_torchs_in_place_and_into_a_part_of_another_tensor() -> None:
    x = torch.randn(3, 300, 1024, dtype=torch.float32) * 4
    expected = F.gelu(x, approximate="tanh")
    whole = torch.zeros(3, 300, 1030)
    gelu_into(x, whole[..., 6:])
    assert torch.allclose(whole[..., 6:], expected, atol=1e-6)
    assert not whole[..., :6].any()
    gelu_into(x, x)
    assert torch.allclose(x, expected, atol=1e-6)


@torch.inference_mode()
def test_gelu_is_torchs_where_it_saturates() -> None:
    x = torch.tensor([[-1e4, -50.0, -0.0, 0.0, 50.0, 1e4]])
    out = torch.empty_like(x)
    gelu_into(x, out)
    assert torch.equal(out, F.gelu(x, approximate="tanh"))


@pytest.mark.parametrize("biases", [(True, True), (False, False), (True, False)])
@torch.inference_mode()
def test_stacked_layers_are_the_layers_side_by_side_over_the_same_numbers(biases: tuple[bool, bool]) -> None:
    layers = [nn.Linear(12, width, bias=bias) for width, bias in zip((8, 20), biases, strict=True)]
    before = [layer.weight.clone() for layer in layers]
    x = torch.randn(2, 5, 12)
    apart = torch.cat([layer(x) for layer in layers], dim=-1)
    stacked = StackedLinear(layers)
    assert torch.allclose(stacked(x), apart, atol=1e-6)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))


@pytest.mark.parametrize("gain", [None, torch.linspace(-0.5, 0.5, 20)])
@torch.inference_mode()
def test_stacked_layers_keep_each_its_own_loras(gain: torch.Tensor | None) -> None:
    network, routing = nn.Sequential(nn.Linear(12, 8), nn.Linear(12, 20)), SlotRouting(CPU)
    layers = list(install_slots(network, routing, 4).values())
    layers[0].write_low_rank(1, torch.randn(4, 12), torch.randn(8, 4))
    layers[1].write_low_rank(2, torch.randn(9, 12), torch.randn(20, 9), gain)
    x, stacked = torch.randn(3, 5, 12), StackedLinear(layers)
    for second_row in ([], [SlotUse(1, 1.0)]):
        with routing.using([[SlotUse(1, 0.8), SlotUse(2, 1.0)], second_row, [SlotUse(2, 0.5)]]):
            apart = torch.cat([layer(x) for layer in layers], dim=-1)
            assert torch.allclose(stacked(x), apart, atol=1e-5)
            assert torch.allclose(stacked(2 * x), torch.cat([layer(2 * x) for layer in layers], dim=-1), atol=1e-5)
