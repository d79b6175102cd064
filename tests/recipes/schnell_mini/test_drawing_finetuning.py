"""Finetuned drawing blocks draw nearer to the right picture, the same at every level, and change no computed weight."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from schnell.engine.denoise import predict_velocity
from schnell.models.catalogue import find_model
from schnell_mini import drawing_finetuning, layout
from schnell_mini.appearance_codes import BackgroundCodes
from schnell_mini.drawing_blocks import find_drawing_blocks, fold_centring, initialise_block, writable_channels
from schnell_mini.drawing_finetuning import CaptionBook, DrawingLearner, measure_channels
from schnell_mini.key_value_blocks import keep_off_directions, write_last_layer, write_time
from schnell_mini.latents import Encoded
from schnell_mini.networks import Shape, as_velocity, build_transformer, build_vae
from schnell_mini.picture_dataset import PictureDataset
from schnell_mini.placement import Grid
from schnell_mini.position_weights import divide_means_by_time, read_directions, write_position_weights
from schnell_mini.sampling import load_pipeline, start_drawings
from schnell_mini.text_models import as_embeddings

ICONS = 3
GRID = Grid(8, 8)
DIRECTIONS = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(9))).Q


@pytest.fixture
def transformer() -> FluxTransformer2DModel:
    """A network with all that the finetuning relies on, and no pictures in its memory."""
    torch.manual_seed(0)
    network = build_transformer(Shape(single_blocks=7))
    write_position_weights(network, DIRECTIONS)
    with torch.no_grad():
        write_time(network)
        write_last_layer(network, BackgroundCodes(torch.randn(14, 3), torch.randn(3, 16)))
        for block in find_drawing_blocks(network):
            initialise_block(block)
            fold_centring(block)
    return network.eval()


@pytest.fixture
def learner(transformer: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch) -> DrawingLearner:
    monkeypatch.setattr(drawing_finetuning, "GRIDS", ((GRID, 1),))
    monkeypatch.setattr(drawing_finetuning, "TOKENS_PER_BATCH", {"cpu": 400})
    torch.manual_seed(2)
    view = (Encoded(torch.randn(ICONS, 16, 16, 16).half(), torch.zeros(ICONS, dtype=torch.long)),)
    book = CaptionBook(torch.randn(ICONS, 15, 256), torch.randn(4, 32, 64))
    return DrawingLearner(transformer, book, PictureDataset({"small": view}, DIRECTIONS), torch.ones(16))


@torch.no_grad()
def predict(transformer: FluxTransformer2DModel, noisy: Tensor, level: float) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    states, pooled = torch.randn(2, 32, 64, generator=generator), torch.randn(2, 256, generator=generator)
    drawings = start_drawings(as_embeddings(states, pooled), noisy, [(level, 0.0)] * 2, GRID.size)
    return predict_velocity(as_velocity(transformer), drawings)


def test_a_finished_model_opened_for_training_predicts_what_it_did(learner: DrawingLearner) -> None:
    noisy = torch.randn(2, GRID.tokens, 64)
    before = predict(learner.transformer, noisy, 0.5)
    learner.finish()
    assert torch.allclose(predict(learner.transformer, noisy, 0.5), before, atol=1e-4)


def test_blocks_learn_and_no_computed_weight_changes(learner: DrawingLearner) -> None:
    transformer = learner.transformer
    mine = {id(parameter) for parameter in learner.blocks.parameters()}
    others = {name: value.clone() for name, value in transformer.named_parameters() if id(value) not in mine}
    losses = [float(learner.update(0.0)) for _ in range(20)]
    learner.finish()
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(torch.equal(value, others[name]) for name, value in transformer.named_parameters() if name in others)
    kept = writable_channels(256) == 0
    assert not any(block.proj_out.weight[kept].any() for block in find_drawing_blocks(transformer))


@torch.no_grad()
def test_what_is_trained_on_is_what_the_whole_network_draws(
    learner: DrawingLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing_finetuning, "CODE_JITTER", 0.0)
    shipped = load_pipeline(find_model("schnell-mini").path)
    prompts = shipped.text.encode(["red apple", "house"])
    book = CaptionBook(learner.book.pooled, torch.stack([prompt.states for prompt in prompts]))
    own = DrawingLearner(shipped.transformer, book, learner.dataset, torch.ones(16))
    noise = torch.randn(2, GRID.tokens, 64, generator=torch.Generator().manual_seed(1))
    drawn = own.draw(noise, GRID, torch.stack([prompt.pooled for prompt in prompts]))
    drawings = start_drawings(prompts, noise, [(1.0, 0.0)] * 2, GRID.size)
    assert torch.allclose(drawn, noise - predict_velocity(as_velocity(shipped.transformer), drawings), atol=0.02)


@pytest.mark.parametrize("level", [0.75, 0.5, 0.25])
def test_a_step_from_a_picture_half_done_draws_what_one_from_pure_noise_does(level: float) -> None:
    shipped = load_pipeline(find_model("schnell-mini").path)
    prompts = shipped.text.encode(["red apple", "house on a teal background"])
    noise = torch.randn(2, Grid(16, 16).tokens, 64, generator=torch.Generator().manual_seed(1))
    drawn, latents = noise, noise
    with torch.no_grad():
        for reached in (1.0, level):
            drawings = start_drawings(prompts, latents, [(reached, 0.0)] * 2, Grid(16, 16).size)
            before, drawn = drawn, latents - reached * predict_velocity(as_velocity(shipped.transformer), drawings)
            latents = torch.lerp(drawn, noise, level)
    assert (drawn - before).square().mean() < 1e-3 * drawn.var()


def test_a_stopped_learner_goes_on_from_its_state(learner: DrawingLearner) -> None:
    learner.update(0.0)
    kept = {name: value.clone() for name, value in learner.state()["blocks"].items()}
    state = {**learner.state(), "blocks": kept}
    learner.update(0.0)
    learner.restore(state)
    assert learner.done == 1
    assert all(torch.equal(value, kept[name]) for name, value in learner.blocks.state_dict().items())


def test_a_channel_counts_as_much_as_it_is_seen() -> None:
    torch.manual_seed(0)
    vae = build_vae(Shape()).eval()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    with torch.no_grad():
        vae.decoder.conv_in.weight[:, 3] *= 5.0
        vae.decoder.conv_in.weight[:, 4] = 0.0
    seen = measure_channels(vae, torch.randn(2, 16, 4, 4))
    assert seen.argmax() == 3
    assert seen[4] == 0
    assert float(seen.mean()) == pytest.approx(1.0)


def test_directions_are_those_that_were_written(transformer: FluxTransformer2DModel) -> None:
    assert torch.allclose(read_directions(transformer), DIRECTIONS, atol=1e-5)


def test_a_picture_shows_nothing_along_the_directions_that_decide_placement(
    transformer: FluxTransformer2DModel,
) -> None:
    with torch.no_grad():
        transformer.proj_out.weight[:, layout.OBJECT] = torch.randn(64, 64)
    keep_off_directions(transformer, DIRECTIONS)
    drawn = transformer.proj_out.weight[:, layout.OBJECT]
    assert (DIRECTIONS.T @ drawn).abs().max() < 1e-5
    assert transformer.proj_out.weight.sum(1).abs().max() < 1e-4  # a norm that moves all channels alike moves nothing


@pytest.mark.parametrize("level", [1.0, 0.5, 0.25])
def test_the_means_of_little_noise_are_as_large_as_of_pure_noise(
    transformer: FluxTransformer2DModel, level: float
) -> None:
    divide_means_by_time(transformer)
    heard: list[Tensor] = []
    block = transformer.transformer_blocks[0]
    hook = block.ff.register_forward_hook(lambda _part, inputs, _output: heard.append(inputs[0]))
    noise = torch.randn(2, GRID.tokens, 64, generator=torch.Generator().manual_seed(1))
    for share in (1.0, level):
        predict(transformer, share * noise, share)
    hook.remove()
    down = slice(layout.SCRATCH + 4, layout.SCRATCH + 6)
    means = [one[..., down] - one[..., layout.ZERO :][..., :1] for one in heard]
    assert torch.allclose(means[0], means[1], rtol=0.05, atol=0.01)
