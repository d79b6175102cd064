"""The last block changes nothing by itself, and its units hold what a token shows, whatever the noise."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from schnell_mini import layout
from schnell_mini.adapter_block import write_adapter_block
from schnell_mini.networks import Shape, build_transformer


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    network = build_transformer(Shape(double_blocks=1, single_blocks=1))
    write_adapter_block(network.single_transformer_blocks[-1])
    return network.eval()


def tokens(shown: Tensor, noise: Tensor) -> Tensor:
    """Tokens `[B, T, 256]` that show objects `[B, T, 64]` under a noise of the same shape."""
    values = torch.zeros(*shown.shape[:2], 256)
    values[..., layout.OBJECT] = layout.NOISE_SCALE * shown
    values[..., layout.NOISE] = layout.NOISE_SCALE * noise
    values[..., -layout.FILLER :] = layout.filler()
    return values


@torch.no_grad()
def run_block(transformer: FluxTransformer2DModel, values: Tensor) -> tuple[Tensor, Tensor]:
    """What the block's hidden units hold, and what comes out."""
    block = transformer.single_transformer_blocks[-1]
    caught: list[Tensor] = []
    hook = block.act_mlp.register_forward_hook(lambda _module, _inputs, out: caught.append(out))
    turns = torch.ones(values.shape[1], 64), torch.zeros(values.shape[1], 64)
    _, out = block(values, values[:, :0], torch.zeros(len(values), 256), image_rotary_emb=turns)
    hook.remove()
    return caught[0], out


def test_the_block_changes_nothing(transformer: FluxTransformer2DModel) -> None:
    values = tokens(torch.randn(1, 4, 64), torch.randn(1, 4, 64))
    assert torch.equal(run_block(transformer, values)[1], values)


def test_its_units_read_the_object_and_not_the_noise(transformer: FluxTransformer2DModel) -> None:
    shown = torch.randn(1, 4, 64)
    first, second = (run_block(transformer, tokens(shown, torch.randn(1, 4, 64)))[0] for _ in range(2))
    other, _ = run_block(transformer, tokens(torch.randn(1, 4, 64), torch.randn(1, 4, 64)))
    assert (first - second).abs().mean() < 0.02 * (first - other).abs().mean()


def test_the_object_is_the_difference_of_its_positive_and_negative_parts(transformer: FluxTransformer2DModel) -> None:
    shown = torch.randn(1, 4, 64)
    units, _ = run_block(transformer, tokens(shown, torch.zeros(1, 4, 64)))
    count = layout.TOKEN_CHANNELS + layout.BACKGROUND.stop - layout.BACKGROUND.start
    read = (units[..., :count] - units[..., count : 2 * count])[..., -layout.TOKEN_CHANNELS :]
    assert torch.corrcoef(torch.stack([read.flatten(), shown.flatten()]))[0, 1] > 0.999
