import re
from pathlib import Path
from typing import Any

import pytest
import torch

from schnell.engine.denoise import begin_drawing, denoise_step
from schnell.engine.device import FLOAT32
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.text import PromptEmbedding
from schnell.errors import TrainingError
from schnell.models.folder import open_model_folder
from schnell.spec import Size
from schnell.training.low_rank import BaseModel, LowRankLayers, install_low_rank, read_factors, set_scale, write_factors

GRID = Size(4, 4)


@pytest.fixture
def transformer(random_flux: Path) -> Any:
    return BaseModel(open_model_folder(random_flux), FLOAT32, torch.device("cpu")).load("transformer")


def _draw(transformer: Any) -> torch.Tensor:
    torch.manual_seed(1)
    prompt = PromptEmbedding(torch.randn(16, 32), torch.randn(32), was_truncated=False)
    return denoise_step(transformer, [begin_drawing(prompt, 3, 1, GRID)])[0].latents


def _fill(layers: LowRankLayers) -> None:
    for layer in layers.values():
        torch.nn.init.normal_(layer.b, std=0.05)


def test_a_fresh_lora_and_scale_zero_change_nothing(transformer: Any) -> None:
    plain = _draw(transformer)
    layers = install_low_rank(transformer, 4, seed=0)
    assert torch.equal(_draw(transformer), plain)
    _fill(layers)
    assert not torch.equal(_draw(transformer), plain)
    set_scale(layers, 0.0)
    assert torch.equal(_draw(transformer), plain)


def test_only_the_factors_learn(transformer: Any) -> None:
    layers = install_low_rank(transformer, 4, seed=0)
    learning = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert len(learning) == 2 * len(layers)
    assert all(re.search(r"\.parts\.\d\.[ab]$", name) for name in learning)


def test_every_attention_and_feed_forward_layer_of_both_kinds_of_block_is_trained(transformer: Any) -> None:
    names = set(install_low_rank(transformer, 2, seed=0))
    double = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    expected = {f"transformer_blocks.0.attn.{name}" for name in double}
    expected |= {f"transformer_blocks.0.{ff}.net.{net}" for ff in ("ff", "ff_context") for net in ("0.proj", "2")}
    single = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"]
    assert names == expected | {f"single_transformer_blocks.0.{name}" for name in single}


def test_factors_read_and_written_back_draw_the_same(random_flux: Path, transformer: Any) -> None:
    layers = install_low_rank(transformer, 4, seed=0)
    _fill(layers)
    other = BaseModel(open_model_folder(random_flux), FLOAT32, torch.device("cpu")).load("transformer")
    write_factors(install_low_rank(other, 4, seed=9), read_factors(layers))
    assert torch.equal(_draw(other), _draw(transformer))


def test_the_layer_equals_merged_weights(transformer: Any) -> None:
    layers = install_low_rank(transformer, 4, seed=0)
    _fill(layers)
    fused = transformer.double_blocks[0].img_attn.qkv
    x = torch.randn(5, fused.in_features)
    deltas = [layers[f"transformer_blocks.0.attn.to_{each}"] for each in "qkv"]
    weight = fused.base.weight + torch.cat([delta.b @ delta.a for delta in deltas])
    merged = torch.nn.functional.linear(x, weight, fused.base.bias)
    torch.testing.assert_close(fused(x), merged, rtol=1e-5, atol=1e-6)


def test_a_model_can_name_the_layers_that_are_trained(transformer: Any) -> None:
    names = set(install_low_rank(transformer, 2, seed=0, only=r"single_transformer_blocks\.0\.proj_(mlp|out)"))
    assert names == {f"single_transformer_blocks.0.{name}" for name in ("proj_mlp", "proj_out")}


def test_layers_that_match_nothing_are_refused(transformer: Any) -> None:
    with pytest.raises(TrainingError, match="that match 'double'"):
        install_low_rank(transformer, 2, seed=0, only="double")


def test_a_network_without_fluxs_layers_is_refused() -> None:
    with pytest.raises(TrainingError, match="none of FLUX's"):
        install_low_rank(Flux(FluxParams(depth=0, depth_single_blocks=0)), 2, seed=0)
