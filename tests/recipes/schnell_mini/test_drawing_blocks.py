"""Drawing blocks: silent at first, learning without touching what is written, and stock blocks in the end."""

from random import Random

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from schnell_mini import drawing_blocks, layout
from schnell_mini.appearance_codes import Looks, Palette
from schnell_mini.code_conditioning import CodesAsTold, Known, Teller, told_by_codes
from schnell_mini.drawing_blocks import BlockLearner, fold, prepare, written_channels
from schnell_mini.latents import Encoded
from schnell_mini.networks import Shape, build_transformer
from schnell_mini.picture_dataset import Scenes
from schnell_mini.pictures import Pose
from schnell_mini.placement import Grid
from schnell_mini.position_weights import write_places
from schnell_mini.text_models import grid_positions, velocity

ICONS = 4
GRID = Grid(8, 8)


@pytest.fixture
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    network = build_transformer(Shape(single_blocks=7))
    write_places(network, torch.eye(layout.CHANNELS)[:, :2])
    return network.eval()


@pytest.fixture
def teller() -> Teller:
    torch.manual_seed(1)
    known = Known(
        Looks(torch.randn(ICONS, layout.LOOKS), torch.ones(layout.LOOKS)),
        Palette(torch.randn(14, 3), torch.randn(3, 16)),
    )
    return Teller(known, torch.randn(6, 32, 64))


@pytest.fixture
def scenes() -> Scenes:
    torch.manual_seed(2)
    view = (Encoded(torch.randn(ICONS, 16, 16, 16).half(), torch.zeros(ICONS, dtype=torch.long), 128, Pose(104)),)
    return Scenes({"small": view}, torch.eye(layout.CHANNELS)[:, :2])


@torch.no_grad()
def answer(transformer: FluxTransformer2DModel, teller: Teller) -> Tensor:
    torch.manual_seed(3)
    noise = torch.randn(2, GRID.tokens, layout.CHANNELS)
    told = teller.tell(Random(0), torch.tensor([0, 1]), torch.tensor([2, 3]))
    with told_by_codes(transformer):
        return velocity(transformer, noise, told, torch.ones(2), grid_positions(16, 16))


def test_codes_are_told_as_the_embedding_that_means_them() -> None:
    codes = torch.randn(3, layout.TIME_CODE)
    embedded = torch.nn.functional.silu(CodesAsTold(256)(codes))[:, : layout.TIME_CODE]
    assert torch.allclose((embedded - layout.LOOK_OFFSET) / layout.LOOK_SPREAD, codes, atol=1e-4)


def test_text_is_embedded_again_once_the_codes_are_told(transformer: FluxTransformer2DModel) -> None:
    embedder = transformer.time_text_embed.text_embedder
    with told_by_codes(transformer):
        assert transformer.time_text_embed.text_embedder is not embedder
    assert transformer.time_text_embed.text_embedder is embedder


def test_a_prepared_block_adds_nothing(transformer: FluxTransformer2DModel) -> None:
    block = drawing_blocks.drawing_blocks(transformer)[0]
    prepare(block)
    image, text, told = torch.randn(1, 8, 256), torch.randn(1, 4, 256), torch.randn(1, 256)
    angles = transformer.pos_embed(torch.zeros(12, 3))
    after = block(hidden_states=image, encoder_hidden_states=text, temb=told, image_rotary_emb=angles)
    assert torch.equal(after[1], image)


def test_a_folded_block_reads_codes_as_it_learnt_to(transformer: FluxTransformer2DModel) -> None:
    block = drawing_blocks.drawing_blocks(transformer)[0]
    prepare(block)
    told = layout.LOOK_OFFSET + torch.rand(2, 256)
    before = block.norm.linear(block.norm.silu(told))
    fold(block)
    assert torch.allclose(block.norm.linear(block.norm.silu(told)), before, atol=1e-4)


def test_learning_changes_the_answer_but_nothing_that_is_written(
    transformer: FluxTransformer2DModel, teller: Teller, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing_blocks, "FIXED", (GRID,))
    monkeypatch.setattr(drawing_blocks, "ANY", 0.0)
    monkeypatch.setattr(drawing_blocks, "TOKENS", {"cpu": 400})
    learner = BlockLearner(transformer, teller, scenes)
    mine = {id(parameter) for parameter in learner.blocks.parameters()}
    others = {name: value.clone() for name, value in transformer.named_parameters() if id(value) not in mine}
    before = answer(transformer, teller)
    losses = [float(learner.update(0.0)) for _ in range(30)]
    learner.finish()
    assert not torch.equal(answer(transformer, teller), before)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(torch.equal(value, others[name]) for name, value in transformer.named_parameters() if name in others)
    kept = written_channels(256) == 0
    assert not any(block.proj_out.weight[kept].any() for block in drawing_blocks.drawing_blocks(transformer))


def test_a_stopped_learner_goes_on_from_its_state(
    transformer: FluxTransformer2DModel, teller: Teller, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing_blocks, "FIXED", (GRID,))
    monkeypatch.setattr(drawing_blocks, "ANY", 0.0)
    learner = BlockLearner(transformer, teller, scenes)
    learner.update(0.0)
    kept = {name: value.clone() for name, value in learner.state()["blocks"].items()}
    again = BlockLearner(transformer, teller, scenes)
    again.restore({**learner.state(), "blocks": kept})
    assert again.done == 1
    assert all(torch.equal(value, kept[name]) for name, value in again.blocks.state_dict().items())
