"""The conventional recipe with a small network on eight pictures, in seconds."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from recipes.schnell_mini.test_recipe import eight_icons, quiet
from schnell.engine.subjects import read_subjects
from schnell.errors import TrainingError
from schnell.models.catalogue import find_model
from schnell.models.folder import open_model_folder
from schnell_mini.captions import COLOURS
from schnell_mini.learned.autoencoder import InnerLevels, build_autoencoder, deepen, find_codes, outer_features
from schnell_mini.learned.caption_dataset import Canvas, plan_pictures, write_caption
from schnell_mini.learned.looks import LOOKS, ground_of, place
from schnell_mini.learned.recipe import LearnedPlan, join_shards, shard_run, split_file, train_learned
from schnell_mini.learned.transformer import BATCH, FlowShape, draw_levels
from schnell_mini.sampling import draw_pictures, load_pipeline

SMALL = (Canvas(64, 64, 1.0, 0.5), Canvas(32, 64, 0.5, 0.2))


@pytest.fixture(scope="module", autouse=True)
def small_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BATCH, "cpu", 4)
        yield


def tiny_plan(work: Path) -> LearnedPlan:
    return LearnedPlan(
        work, 60, torch.device("cpu"), quiet, find_model("schnell-mini").path,
        shape=FlowShape(double_blocks=1, single_blocks=1), canvases=SMALL, updates=1, taught=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("learned")
    train_learned(tiny_plan(work), eight_icons(), resume=False)
    return work


def test_what_is_learned_is_a_model_folder_that_draws_every_canvas(trained: Path) -> None:
    folder = open_model_folder(trained / "schnell-mini")
    assert folder.pixels_per_token == 32
    assert folder.lora_layers is None
    subjects = read_subjects(trained / "schnell-mini")
    assert subjects is not None
    assert len(subjects.names) == 8
    pictures = draw_pictures(load_pipeline(trained / "schnell-mini"), ["red block"], [1], (32, 96), 2)
    assert pictures.shape == (1, 3, 32, 96)
    assert torch.isfinite(pictures).all()


def test_a_run_goes_on_only_when_asked(trained: Path) -> None:
    with pytest.raises(TrainingError, match="--resume"):
        train_learned(tiny_plan(trained), eight_icons(), resume=False)
    states = {path: path.stat().st_mtime_ns for path in trained.glob("state/*.pt")}
    train_learned(tiny_plan(trained), eight_icons(), resume=True)
    assert {path: path.stat().st_mtime_ns for path in trained.glob("state/*.pt")} == states


def test_shards_are_small_and_put_together_give_the_file(trained: Path, tmp_path: Path) -> None:
    state = trained / "state/flow.pt"
    shards = split_file(state, tmp_path, 1 << 20)
    assert all(shard.stat().st_size <= 1 << 20 for shard in shards)
    join_shards(shards, tmp_path / "flow.pt")
    assert (tmp_path / "flow.pt").read_bytes() == state.read_bytes()
    shard_run(trained, tmp_path / "out")
    assert (tmp_path / "out/state/flow.pt.000").exists()
    assert list((tmp_path / "out/schnell-mini/transformer").glob("*.safetensors.000"))


def test_codes_keep_the_distances_of_smooth_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(6, 16, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
    codes = find_codes(smooth)
    assert codes.shape == (6, 16, 8, 8)
    apart, before = (codes[0] - codes[1]).square().sum(), (smooth[0] - smooth[1]).square().sum()
    assert torch.allclose(apart, before, rtol=1e-3)
    assert codes.std((0, 2, 3)).max() < 1.5 * codes.std((0, 2, 3)).min()


def test_a_deeper_autoencoder_keeps_the_outer_levels() -> None:
    torch.manual_seed(0)
    shallow = build_autoencoder((8, 8, 16)).eval()
    deep = deepen(shallow).eval()
    pictures = torch.rand(1, 3, 32, 32) * 2 - 1
    read, wanted, _ = outer_features(shallow, pictures)
    inner = InnerLevels(deep)
    with torch.no_grad():
        mean = inner.encode(read).chunk(2, 1)[0]
        assert torch.allclose(mean, deep.encode(pictures).latent_dist.mean, atol=1e-5)
        assert inner.decode(mean).shape == wanted.shape


@pytest.mark.parametrize("look", LOOKS, ids=[look.name for look in LOOKS])
def test_a_look_leaves_the_ground_alone_and_changes_the_icon(look: object) -> None:
    [each] = [one for one in LOOKS if one is look]
    icons = place(eight_icons().pictures[:2].float() / 255, (64, 96), torch.tensor([[48.0, 0, 0, 0]] * 2))
    grounds = torch.tensor([ground_of(each, "beige")] * 2)
    made = each.paint(icons, grounds)
    assert made.shape == (2, 3, 64, 96)
    if each.name == "black-light":  # a dark room, whatever is asked
        assert made[:, :, 0, 0].max() < 0.1
    else:
        assert torch.allclose(made[:, :, 0, 0], grounds, atol=0.02)
    if each is not LOOKS[0]:
        assert (made - LOOKS[0].paint(icons, grounds)).abs().mean() > 0.001


def test_icons_are_placed_where_they_are_asked_to_be() -> None:
    icon = torch.zeros(1, 4, 256, 256)
    icon[:, :, 64:192, 64:192] = 1
    placed = place(icon, (64, 128), torch.tensor([[32.0, 0, 20, -10]]))[0, 3]
    rows, columns = (placed > 0.5).nonzero().float().mean(0).tolist()
    assert (rows, columns) == pytest.approx((31.5 - 10, 63.5 + 20), abs=0.6)
    assert float(placed.sum()) == pytest.approx(16 * 16, rel=0.15)


def test_a_caption_names_icon_and_look() -> None:
    rng, label = Random(0), eight_icons().labels[0]
    for look in LOOKS[1:]:
        texts = [write_caption(rng, label, look, "pink") for _ in range(20)]
        assert all(label.name in text and any(phrase in text for phrase in look.phrases) for text in texts)
        assert all(("pink" in text) == (look.ground is None) for text in texts)


def test_every_icon_is_on_a_canvas_as_often_as_planned() -> None:
    pictures = plan_pictures(Random(0), 8, SMALL[0])
    plain = [picture.icon for picture in pictures if picture.look == 0]
    assert sorted(plain) == list(range(8))
    assert len(pictures) == 8 + 4 * (len(LOOKS) - 1)
    assert {picture.ground for picture in pictures} <= set(COLOURS)


def test_noise_levels_are_mostly_those_of_four_steps() -> None:
    levels = draw_levels(Random(0), 1000)
    assert 0.3 < levels.count(1.0) / 1000 < 0.5
    assert all(0 < level <= 1 for level in levels)
