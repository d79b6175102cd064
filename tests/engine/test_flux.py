"""Our FLUX against diffusers', and its forms of a pass against each other."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

from counts import SOAK
from flux_folder import write_flux_folder
from schnell.engine.denoise import Drawing, begin_drawing, denoise_step, initial_noise, predict_velocity
from schnell.engine.device import BFLOAT16, FLOAT32, Precision
from schnell.engine.flux import Flux, FluxParams, VelocityNetwork
from schnell.engine.flux_kernels import gelu
from schnell.engine.loading import load_network
from schnell.engine.text import TextEncoder
from schnell.models.folder import ModelFolder, open_model_folder
from schnell.spec import Size
from schnell_mini.networks import as_velocity

CPU = torch.device("cpu")
PROMPTS = ["red apple", "green tree", "a car"]
#: Their sides are a quarter of these in a `make test`, and whole in a `make soak`.
SIZES = [(1024, 1024), (1216, 832), (832, 1216), (896, 1088), (1344, 768), (672, 384), (288, 1056), (512, 512)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A random model with FLUX.1's own head width and rotary axes."""
    path = tmp_path_factory.mktemp("wide")
    return open_model_folder(write_flux_folder(path, heads=2, head_width=128, blocks=2, single_blocks=3))


def load_ours(folder: ModelFolder, precision: Precision) -> Flux:
    ours: Flux = load_network(folder.path, "transformer", precision, CPU)
    return ours


def load_theirs(folder: ModelFolder, precision: Precision) -> VelocityNetwork:
    stock: Any = FluxTransformer2DModel.from_pretrained(folder.path / "transformer", dtype=precision.dtype)
    return as_velocity(stock.eval())


def drawings_for(folder: ModelFolder, precision: Precision, grid: Size, steps: int = 4, rows: int = 2) -> list[Drawing]:
    clip, t5 = (load_network(folder.path, part, precision, CPU) for part in ("text_encoder", "text_encoder_2"))
    prompts = TextEncoder(folder.path, folder.sequence_length, clip, t5).encode(PROMPTS[:rows])
    return [begin_drawing(prompt, seed, steps, grid) for seed, prompt in enumerate(prompts)]


def run(network: VelocityNetwork, drawings: list[Drawing], steps: int) -> Tensor:
    for _ in range(steps):
        drawings = denoise_step(network, drawings)
    return torch.stack([drawing.latents for drawing in drawings])


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("index", "size"), list(enumerate(SIZES)))
def test_latents_are_diffusers_latents_to_a_millionth(wide: ModelFolder, index: int, size: tuple[int, int]) -> None:
    shrink = 16 if SOAK else 64
    grid = Size(size[0] // shrink, size[1] // shrink)
    ours, theirs = load_ours(wide, FLOAT32), load_theirs(wide, FLOAT32)
    for steps in range(1, 5) if SOAK else (1 + index % 4,):
        drawings = drawings_for(wide, FLOAT32, grid, steps, rows=1)
        assert error(run(ours, drawings, steps), run(theirs, drawings, steps)) <= 1e-6


# bfloat16 rounds the constant in schnell-mini's tokens, and either way of adding up rounds it elsewhere
@pytest.mark.parametrize(("precision", "largest"), [(FLOAT32, 1e-5), (BFLOAT16, 5e-2)])
def test_the_embedded_model_steps_as_in_diffusers(mini: ModelFolder, precision: Precision, largest: float) -> None:
    drawings = drawings_for(mini, precision, Size(16, 12))
    assert error(run(load_ours(mini, precision), drawings, 1), run(load_theirs(mini, precision), drawings, 1)) < largest


def test_bfloat16_moves_a_model_hardly_further_from_float32_than_in_diffusers(wide: ModelFolder) -> None:
    exact = run(load_theirs(wide, FLOAT32), drawings_for(wide, FLOAT32, Size(24, 20)), 4)
    drawings = drawings_for(wide, BFLOAT16, Size(24, 20))
    ours, theirs = run(load_ours(wide, BFLOAT16), drawings, 4), run(load_theirs(wide, BFLOAT16), drawings, 4)
    assert error(ours, exact) <= 1.1 * error(theirs, exact)


@pytest.mark.parametrize("rows", [1, 3])
def test_results_do_not_depend_on_whether_they_may_be_overwritten(wide: ModelFolder, rows: int) -> None:
    network, drawings = load_ours(wide, FLOAT32), drawings_for(wide, FLOAT32, Size(5, 7), rows=rows)
    with torch.inference_mode():
        in_place = predict_velocity(network, drawings)
    functional = predict_velocity(network, drawings)
    assert error(in_place, functional) <= 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_input_has_the_gradient_that_it_has_in_diffusers(wide: ModelFolder, checkpointing: bool) -> None:
    found = []
    for network in (ours := load_ours(wide, FLOAT32), load_theirs(wide, FLOAT32)):
        ours.checkpointing = checkpointing
        drawings = drawings_for(wide, FLOAT32, Size(5, 7))
        for drawing in drawings:
            drawing.latents.requires_grad_()
        torch.autograd.backward(predict_velocity(network, drawings).square().sum())
        found.append(torch.stack([drawing.latents.grad for drawing in drawings if drawing.latents.grad is not None]))
    assert error(*found) <= 1e-5


def test_a_picture_between_two_trainings_does_not_end_them(wide: ModelFolder) -> None:
    network, drawings = load_ours(wide, FLOAT32), drawings_for(wide, FLOAT32, Size(5, 7))
    denoise_step(network, drawings)
    network.img_in.requires_grad_(requires_grad=True)
    torch.autograd.backward(predict_velocity(network, drawings).sum())
    assert network.img_in.weight.grad is not None


def test_inputs_that_do_not_belong_together_are_named() -> None:
    network = Flux(FluxParams(hidden_size=128, num_heads=1, depth=0, depth_single_blocks=0, context_in_dim=8))
    img, txt, y, level = torch.zeros(2, 6, 64), torch.zeros(2, 3, 8), torch.zeros(2, 768), torch.ones(2)
    for inputs, message in [
        ((img[..., 1:], txt, torch.zeros(9, 3), level, y), "latents must be"),
        ((img, txt[..., 1:], torch.zeros(9, 3), level, y), "text states must be"),
        ((img, txt, torch.zeros(8, 3), level, y), "positions must be"),
        ((img, txt, torch.zeros(9, 3), level, y[:1]), "pooled vectors must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            network(*inputs)


def test_sizes_that_do_not_fit_each_other_are_named() -> None:
    with pytest.raises(ValueError, match="split among 5 heads"):
        FluxParams(num_heads=5)
    with pytest.raises(ValueError, match="turn 16 channels, but a head has 128"):
        FluxParams(axes_dim=(16,))


@pytest.mark.parametrize("size", [(3, 300, 1024), (1, 6)])
@torch.inference_mode()
def test_gelu_is_torchs_in_place_and_into_a_part_of_another_tensor(size: tuple[int, ...]) -> None:
    x = torch.randn(size) * 4
    x.view(-1)[:6] = torch.tensor([-1e4, -50.0, -0.0, 0.0, 50.0, 1e4])
    expected = F.gelu(x, approximate="tanh")
    whole = torch.zeros(*size[:-1], size[-1] + 6)
    gelu(x, into=whole[..., 6:])
    assert torch.allclose(whole[..., 6:], expected, atol=1e-6)
    assert not whole[..., :6].any()
    assert gelu(x, into=x) is x
    assert torch.allclose(x, expected, atol=1e-6)


def test_a_step_builds_its_host_tensors_once(wide: ModelFolder) -> None:
    """On a GPU a copy from the host waits for everything before it: a step must make none that it made before."""
    network, seen = load_ours(wide, FLOAT32), []

    def spy(img: Tensor, txt: Tensor, ids: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        seen.append((ids, timesteps))
        velocity: Tensor = network(img, txt, ids, timesteps, y)
        return velocity

    for _ in range(2):
        run(spy, drawings_for(wide, FLOAT32, Size(5, 7), steps=2), 2)
    for before, after in zip(seen[:2], seen[2:], strict=True):
        assert before[0] is after[0]
        assert before[1] is after[1]
    assert torch.equal(initial_noise(0, Size(5, 7)), drawings_for(wide, FLOAT32, Size(5, 7))[0].latents)
