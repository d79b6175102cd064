from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from schnell.engine.device import BFLOAT16, FLOAT32, Precision
from schnell.engine.loading import load_network
from schnell.models.folder import ModelFolder

CPU = torch.device("cpu")
LARGEST = {FLOAT32: 1e-5, BFLOAT16: 3e-2}
PROMPTS = torch.tensor([[2, 5, 9, 3, 1, 0, 0, 0], [4, 1, 0, 0, 0, 0, 0, 0], [7, 8, 10, 4, 5, 6, 9, 1]])


@pytest.fixture(params=["mini", "random"])
def folder(request: pytest.FixtureRequest, mini: ModelFolder, random_flux: Path) -> Path:
    return mini.path if request.param == "mini" else random_flux


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
@torch.inference_mode()
def test_clip_pools_what_transformers_pools(folder: Path, precision: Precision) -> None:
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=precision.dtype)(PROMPTS).pooler_output
    ours = load_network(folder, "text_encoder", precision, CPU)(PROMPTS)
    assert ours.dtype == precision.dtype
    assert (ours - theirs).norm() <= LARGEST[precision] * theirs.norm()


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
@torch.inference_mode()
def test_t5_states_are_transformers_states(folder: Path, precision: Precision) -> None:
    theirs = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=precision.dtype)(PROMPTS)[0]
    ours = load_network(folder, "text_encoder_2", precision, CPU)(PROMPTS)
    assert ours.dtype == precision.dtype
    assert (ours - theirs).norm() <= LARGEST[precision] * theirs.norm()


@pytest.mark.parametrize(("part", "theirs"), [("text_encoder", CLIPTextModel), ("text_encoder_2", T5EncoderModel)])
def test_parameters_have_transformers_names(folder: Path, part: str, theirs: type) -> None:
    names = {name for name, _ in theirs.from_pretrained(folder / part).named_parameters()}  # type: ignore[attr-defined]
    assert {name for name, _ in load_network(folder, part, FLOAT32, CPU).named_parameters()} == names


def test_a_distance_beyond_the_trained_ones_shares_their_last_bucket() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    from schnell.engine.text_networks import distance_buckets

    way = torch.arange(300)[None] - torch.arange(300)[:, None]
    assert torch.equal(distance_buckets(300, 32, 128), T5Attention._relative_position_bucket(way))


@torch.inference_mode()
def test_fused_attention_takes_the_position_bias(mini: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    network, seen = load_network(mini.path, "text_encoder_2", FLOAT32, CPU), []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor, scale: float) -> Tensor:
        seen.append(attn_mask.stride(-1))
        return attend(query, key, value, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    network(PROMPTS)
    assert set(seen) == {1}
