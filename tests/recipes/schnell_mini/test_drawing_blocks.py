"""Drawing blocks add nothing at first, learn without changing any computed weight, and are FLUX's own in the end."""

from random import Random

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from schnell.engine.denoise import predict_velocity
from schnell_mini import drawing_blocks, layout
from schnell_mini.appearance_codes import AppearanceCodes, BackgroundCodes
from schnell_mini.code_conditioning import Codebook, CodeConditioner, conditioned_by_codes
from schnell_mini.drawing_blocks import BlockLearner, fold_centring, initialise_block, reopen_block, writable_channels
from schnell_mini.latents import Encoded
from schnell_mini.networks import Shape, as_velocity, build_transformer
from schnell_mini.picture_dataset import PictureDataset
from schnell_mini.placement import Grid
from schnell_mini.position_weights import write_position_weights
from schnell_mini.sampling import start_drawings

ICONS = 4
GRID = Grid(8, 8)


@pytest.fixture
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    network = build_transformer(Shape(single_blocks=7))
    write_position_weights(network, torch.eye(layout.TOKEN_CHANNELS)[:, :2])
    return network.eval()


@pytest.fixture
def conditioner() -> CodeConditioner:
    torch.manual_seed(1)
    codebook = Codebook(
        AppearanceCodes(torch.randn(ICONS, layout.APPEARANCE_CODES), torch.ones(layout.APPEARANCE_CODES)),
        BackgroundCodes(torch.randn(14, 3), torch.randn(3, 16)),
    )
    return CodeConditioner(codebook, torch.randn(6, 32, 64))


@pytest.fixture
def dataset() -> PictureDataset:
    torch.manual_seed(2)
    view = (Encoded(torch.randn(ICONS, 16, 16, 16).half(), torch.zeros(ICONS, dtype=torch.long)),)
    return PictureDataset({"small": view}, torch.eye(layout.TOKEN_CHANNELS)[:, :2])


@torch.no_grad()
def predict(transformer: FluxTransformer2DModel, conditioner: CodeConditioner) -> Tensor:
    torch.manual_seed(3)
    noise = torch.randn(2, GRID.tokens, layout.TOKEN_CHANNELS)
    prompts = conditioner.condition(Random(0), torch.tensor([0, 1]), torch.tensor([2, 3]))
    with conditioned_by_codes(transformer):
        return predict_velocity(as_velocity(transformer), start_drawings(prompts, noise, [(1.0, 0.0)] * 2, GRID.size))


def test_an_initialised_block_adds_nothing(transformer: FluxTransformer2DModel) -> None:
    block = drawing_blocks.find_drawing_blocks(transformer)[0]
    initialise_block(block)
    image, text, embedding = torch.randn(1, 8, 256), torch.randn(1, 4, 256), torch.randn(1, 256)
    angles = transformer.pos_embed(torch.zeros(12, 3))
    after = block(hidden_states=image, encoder_hidden_states=text, temb=embedding, image_rotary_emb=angles)
    assert torch.equal(after[1], image)


def test_folding_the_centring_into_the_weights_changes_no_modulation(transformer: FluxTransformer2DModel) -> None:
    block = drawing_blocks.find_drawing_blocks(transformer)[0]
    initialise_block(block)
    embedding = layout.CODE_OFFSET + torch.rand(2, 256)
    before = block.norm.linear(block.norm.silu(embedding))
    fold_centring(block)
    assert torch.allclose(block.norm.linear(block.norm.silu(embedding)), before, atol=1e-4)


def test_a_finished_block_opened_again_reads_neither_noise_nor_its_level(transformer: FluxTransformer2DModel) -> None:
    block = drawing_blocks.find_drawing_blocks(transformer)[0]
    initialise_block(block)
    fold_centring(block)
    unread = drawing_blocks.noise_scales(256)
    with torch.no_grad():
        block.norm.linear.weight[:, layout.TIME] = 0.1
        block.norm.linear.bias[unread] = 3.0
    embedding = layout.CODE_OFFSET + torch.rand(1, 256)
    embedding[:, layout.TIME] = layout.TIME_SCALE  # pure noise
    wanted = block.norm.linear(block.norm.silu(embedding))
    wanted[:, unread] = -1.0
    reopen_block(block)
    for level in (1.0, 0.25):
        embedding[:, layout.TIME] = layout.TIME_SCALE / level
        assert torch.allclose(block.norm.linear(block.norm.silu(embedding)), wanted, atol=1e-3)


def test_learning_changes_the_prediction_but_no_computed_weight(
    transformer: FluxTransformer2DModel,
    conditioner: CodeConditioner,
    dataset: PictureDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing_blocks, "USUAL_GRIDS", (GRID,))
    monkeypatch.setattr(drawing_blocks, "ANY_GRID_SHARE", 0.0)
    monkeypatch.setattr(drawing_blocks, "TOKENS_PER_BATCH", {"cpu": 400})
    learner = BlockLearner(transformer, conditioner, dataset)
    mine = {id(parameter) for parameter in learner.blocks.parameters()}
    others = {name: value.clone() for name, value in transformer.named_parameters() if id(value) not in mine}
    before = predict(transformer, conditioner)
    losses = [float(learner.update(0.0)) for _ in range(30)]
    learner.finish()
    assert not torch.equal(predict(transformer, conditioner), before)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(torch.equal(value, others[name]) for name, value in transformer.named_parameters() if name in others)
    kept = writable_channels(256) == 0
    assert not any(block.proj_out.weight[kept].any() for block in drawing_blocks.find_drawing_blocks(transformer))
    unread = drawing_blocks.noise_scales(256)
    for block in drawing_blocks.find_drawing_blocks(transformer):
        modulation = block.norm.linear(block.norm.silu(torch.randn(2, 256)))
        assert torch.allclose(modulation[:, unread], torch.tensor(-1.0), atol=1e-3)


def test_a_stopped_learner_goes_on_from_its_state(
    transformer: FluxTransformer2DModel,
    conditioner: CodeConditioner,
    dataset: PictureDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing_blocks, "USUAL_GRIDS", (GRID,))
    monkeypatch.setattr(drawing_blocks, "ANY_GRID_SHARE", 0.0)
    learner = BlockLearner(transformer, conditioner, dataset)
    learner.update(0.0)
    kept = {name: value.clone() for name, value in learner.state()["blocks"].items()}
    again = BlockLearner(transformer, conditioner, dataset)
    again.restore({**learner.state(), "blocks": kept})
    assert again.done == 1
    assert all(torch.equal(value, kept[name]) for name, value in again.blocks.state_dict().items())
