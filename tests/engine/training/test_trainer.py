import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

from schnell.adapters import convert_adapter, inspect_adapter, read_info, read_model_shape
from schnell.errors import TrainingError
from schnell.models.folder import open_model_folder
from schnell.spec import Size
from schnell.training.examples import nearest_grid
from schnell.training.files import state_path
from schnell.training.low_rank import BaseModel, place_model
from schnell.training.plan import Budget, TrainingPlan, TrainingProgress
from schnell.training.trainer import FEWEST_PICTURES, TrainedLora, TrainingRequest, train_lora

CPU = torch.device("cpu")
PLAN = TrainingPlan(
    "neon", rank=4, budget=Budget(steps=6), megapixels=(("0.25", 1.0),), batch_size=2, learning_rate=0.01
)


def _quiet(_: TrainingProgress) -> None:
    return


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A random FLUX that draws at an eighth of the asked size: a step takes milliseconds."""
    from flux_folder import write_flux_folder

    path = write_flux_folder(tmp_path_factory.mktemp("models") / "tiny")
    (path / "schnell.json").write_text('{"draw_scale": 8, "sequence_length": 16}')
    return place_model(open_model_folder(path), CPU)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        picture = Image.new("RGB", (64, 64), "black")
        ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), fill=colour)
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} apple")
    return folder


def _train(base: BaseModel, images: Path, out: Path, plan: TrainingPlan = PLAN, **options: object) -> TrainedLora:
    return train_lora(TrainingRequest(images, out, plan, base, **options), _quiet)  # type: ignore[arg-type]


def test_training_lowers_the_loss(base: BaseModel, images: Path, tmp_path: Path) -> None:
    before = _train(base, images, tmp_path / "before.safetensors", replace(PLAN, budget=Budget(steps=1), batch_size=64))
    after = _train(base, images, tmp_path / "after.safetensors", replace(PLAN, budget=Budget(steps=80), batch_size=8))
    assert after.loss < 0.9 * before.loss


def test_a_budget_of_minutes_ends_by_itself(base: BaseModel, images: Path, tmp_path: Path) -> None:
    trained = _train(base, images, tmp_path / "x.safetensors", replace(PLAN, budget=Budget(minutes=0.02)))
    assert trained.steps >= 1
    assert trained.path.exists()


class _Stop:
    """Interrupts a training as Ctrl-C does, once it has taken so many steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def __call__(self, progress: TrainingProgress) -> None:
        if progress.stage == "training":
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt


def test_resuming_equals_never_having_stopped(base: BaseModel, images: Path, tmp_path: Path) -> None:
    whole = _train(base, images, tmp_path / "whole.safetensors")
    request = TrainingRequest(images, tmp_path / "parts.safetensors", PLAN, base)
    with pytest.raises(KeyboardInterrupt):
        train_lora(request, _Stop(3))
    assert not request.out.exists()
    resumed = train_lora(replace(request, resume=True), _quiet)
    assert resumed.steps == whole.steps == 6
    expected, got = load_file(whole.path), load_file(resumed.path)
    assert expected.keys() == got.keys()
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values, rtol=1e-3, atol=1e-5)


def test_a_finished_training_can_go_on_with_a_larger_budget(base: BaseModel, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    _train(base, images, out)
    trained = _train(base, images, out, replace(PLAN, budget=Budget(steps=9)), resume=True)
    assert trained.steps == 9


def test_resuming_without_a_state_begins_anew_and_says_so(base: BaseModel, images: Path, tmp_path: Path) -> None:
    trained = _train(base, images, tmp_path / "x.safetensors", resume=True)
    assert trained.steps == 6
    assert "began anew" in trained.warnings[0]


def test_resuming_with_another_rank_or_trigger_is_refused(base: BaseModel, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    _train(base, images, out)
    with pytest.raises(TrainingError, match=r"rank was 4, is 8.*without --resume"):
        _train(base, images, out, replace(PLAN, rank=8), resume=True)


def test_a_damaged_state_is_refused(base: BaseModel, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    state_path(out).write_bytes(b"half a file")
    with pytest.raises(TrainingError, match="is damaged: delete it"):
        _train(base, images, out, resume=True)


def test_the_file_is_understood_whole_and_says_what_it_is(base: BaseModel, images: Path, tmp_path: Path) -> None:
    trained = _train(base, images, tmp_path / "x.safetensors")
    report = inspect_adapter(trained.path)
    assert report.problem is None
    converted = convert_adapter(trained.path, tmp_path / "canonical", shape=read_model_shape(base.folder.path))
    info = read_info(converted.path)
    # one double block has 12 such layers, one single block 5
    assert (info.rank, dict(info.modules), info.trigger_words) == (4, {"transformer": 17}, ("neon",))
    assert info.base_model == ("tiny",)
    with safe_open(trained.path, "pt") as file:
        metadata = file.metadata()
    assert metadata["steps"] == "6"
    assert metadata["base_model_sha256"] == base.sha256


def test_captions_that_are_too_long_are_a_warning(base: BaseModel, images: Path, tmp_path: Path) -> None:
    (images / "0.txt").write_text("apple " * 40)
    trained = _train(base, images, tmp_path / "x.safetensors", replace(PLAN, budget=Budget(steps=1)))
    assert trained.warnings[0] == "1 captions are longer than 16 tokens: their ends were not read"


def test_samples_are_drawn_before_during_and_after(base: BaseModel, images: Path, tmp_path: Path) -> None:
    _train(base, images, tmp_path / "x.safetensors", samples=tmp_path / "samples")
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert len(names) >= 3
    assert names[0] == "step-000000.webp"
    assert names[-1] == "step-000006.webp"
    assert Image.open(tmp_path / "samples" / names[0]).size == (3 * 512, 512)


def test_checkpointing_changes_nothing_but_memory(base: BaseModel, images: Path, tmp_path: Path) -> None:
    plain = _train(base, images, tmp_path / "a.safetensors")
    saving = _train(base, images, tmp_path / "b.safetensors", replace(PLAN, checkpointing=True))
    assert saving.loss == pytest.approx(plain.loss, rel=1e-4)


@pytest.mark.parametrize("rank", [0, 33])
def test_a_rank_that_does_not_fit_is_refused(base: BaseModel, images: Path, tmp_path: Path, rank: int) -> None:
    with pytest.raises(TrainingError, match="--rank must be 1-32 for this model"):
        _train(base, images, tmp_path / "x.safetensors", replace(PLAN, rank=rank))


def test_a_loss_that_is_not_a_number_stops_the_training(base: BaseModel, images: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, learning_rate=1e30, budget=Budget(steps=50))
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        _train(base, images, tmp_path / "x.safetensors", plan)
    assert not state_path(tmp_path / "x.safetensors").exists()


def test_another_ending_than_safetensors_is_refused(base: BaseModel, images: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"must end in \.safetensors"):
        _train(base, images, tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("picture", "grid"), [(Size(1000, 1010), (4, 4)), (Size(4000, 1000), (6, 3)), (Size(90, 160), (3, 6))]
)
def test_a_picture_goes_to_the_nearest_ratio(base: BaseModel, picture: Size, grid: tuple[int, int]) -> None:
    assert nearest_grid(picture, "0.25", base.folder) == grid


def test_a_run_that_changes_next_to_nothing_says_so(base: BaseModel, images: Path, tmp_path: Path) -> None:
    short = replace(PLAN, budget=Budget(steps=1), learning_rate=1e-6)
    trained = _train(base, images, tmp_path / "x.safetensors", short)
    assert any("hardly differ from those without the LoRA" in warning for warning in trained.warnings)


def test_fewer_pictures_than_documented_are_warned_about(base: BaseModel, images: Path, tmp_path: Path) -> None:
    few = _train(base, images, tmp_path / "few.safetensors", replace(PLAN, budget=Budget(steps=1)))
    assert any(warning.startswith("3 pictures are few") for warning in few.warnings)
    for number in range(3, FEWEST_PICTURES):
        shutil.copy(images / "0.png", images / f"{number}.png")
    enough = _train(base, images, tmp_path / "enough.safetensors", replace(PLAN, budget=Budget(steps=1)))
    assert not any("are few" in warning for warning in enough.warnings)
