from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from flux_folder import write_flux_folder
from schnell.errors import TrainingError
from schnell.models.folder import open_model_folder
from schnell.training.examples import embed_captions
from schnell.training.lessons import Student
from schnell.training.low_rank import BaseModel, install_low_rank, place_model, read_factors, write_factors
from schnell.training.pairs import PairedData, Pairing, pair_pictures
from schnell.training.pictures import find_pictures
from schnell.training.plan import Budget, TrainingPlan, TrainingProgress
from schnell.training.preconditioning import precondition
from schnell.training.trainer import TrainedLora, TrainingRequest, train_lora

LAYERS = r"single_transformer_blocks\.0\.(proj_mlp|proj_out)"
PLAN = TrainingPlan("neon", rank=4, budget=Budget(steps=6), megapixels=(("0.25", 1.0),), batch_size=2)


def _quiet(_: TrainingProgress) -> None:
    return


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    path = write_flux_folder(tmp_path_factory.mktemp("models") / "tiny")
    options = f'"draw_scale": 8, "sequence_length": 16, "noise_places": true, "lora_layers": "{LAYERS}"'
    (path / "schnell.json").write_text("{" + options.replace("\\", "\\\\") + "}")
    return place_model(open_model_folder(path), torch.device("cpu"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (colour, size) in enumerate({"red": (64, 64), "green": (64, 64), "blue": (96, 54)}.items()):
        picture = Image.new("RGB", size, "black")
        ImageDraw.Draw(picture).ellipse((12, 12, 52, 42), fill=colour)
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} apple\na {colour} car")
    return folder


@pytest.fixture
def student(base: BaseModel) -> Student:
    transformer = base.load("transformer")
    layers = install_low_rank(transformer, 4, 0, LAYERS)
    return Student(transformer, layers, torch.Generator().manual_seed(0), base.device)


@pytest.fixture
def pairs(base: BaseModel, images: Path, student: Student) -> PairedData:
    pictures = find_pictures(images, "neon")
    captions = embed_captions(pictures, base, _quiet)
    return pair_pictures(Pairing(base, student.transformer, pictures, captions, PLAN), _quiet)


def _train(base: BaseModel, images: Path, out: Path, plan: TrainingPlan = PLAN, **options: object) -> TrainedLora:
    return train_lora(TrainingRequest(images, out, plan, base, **options), _quiet)  # type: ignore[arg-type]


def test_every_ratio_is_trained_and_those_of_the_pictures_most(pairs: PairedData) -> None:
    shares = {each.grid: each.share for each in pairs.grids}
    assert sum(shares.values()) == pytest.approx(1.0)
    first, second = sorted(shares.values())[-2:]
    assert first + second == pytest.approx(0.7)
    assert len(shares) > 2


def test_one_noise_stands_beside_several_pictures(pairs: PairedData) -> None:
    square = max(pairs.grids, key=lambda each: each.share)
    noise = square.levels[0].latents
    assert torch.equal(noise[0], noise[1])
    assert len({float(each.sum()) for each in noise}) == len(noise) // 2


def test_untrained_factors_draw_the_bases_own_latents(pairs: PairedData, student: Student) -> None:
    for each in pairs.grids:
        each.wanted, each.covered = each.base, torch.ones_like(each.covered)
    # a processor that multiplies bfloat16 rounds the kept inputs
    assert float(pairs.loss(student, 2).detach()) < 1e-3


def test_lower_levels_are_what_the_lora_draws(pairs: PairedData, student: Student) -> None:
    before = [len(each.levels) for each in pairs.grids]
    pairs.renew(student, 0.0)
    assert [len(each.levels) for each in pairs.grids] == before == [1] * len(before)
    pairs.renew(student, 0.5)
    first = pairs.grids[0].levels
    assert [level.sigma for level in first] == [1.0, 0.75, 0.5, 0.25]
    assert torch.isfinite(pairs.loss(student, 2))


def test_units_change_neither_what_factors_do_nor_what_a_file_holds(
    base: BaseModel, pairs: PairedData, student: Student
) -> None:
    for layer in student.layers.values():
        torch.nn.init.normal_(layer.b, std=0.05)
    plain = read_factors(student.layers)
    state = student.generator.get_state()
    loss = float(pairs.loss(student, 2).detach())
    precondition(student, pairs, 2)
    write_factors(student.layers, plain)
    for name, factor in read_factors(student.layers).items():
        torch.testing.assert_close(factor, plain[name])
    student.generator.set_state(state)
    assert float(pairs.loss(student, 2).detach()) == pytest.approx(loss, rel=1e-2)


def test_factors_learn_what_the_pictures_show(pairs: PairedData, student: Student) -> None:
    def error() -> float:
        student.generator.manual_seed(5)
        with torch.no_grad():
            return sum(float(pairs.loss(student, 4)) for _ in range(12))

    precondition(student, pairs, 2)
    before = error()
    optimizer = torch.optim.Adam([p for layer in student.layers.values() for p in layer.parameters()], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        pairs.loss(student, 2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert error() < 0.9 * before


def test_a_file_holds_the_layers_that_the_model_names(base: BaseModel, images: Path, tmp_path: Path) -> None:
    trained = _train(base, images, tmp_path / "x.safetensors", replace(PLAN, budget=Budget(steps=2)))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in load_file(trained.path)} == {"proj_mlp", "proj_out"}


def test_a_stopped_training_goes_on(base: BaseModel, images: Path, tmp_path: Path) -> None:
    def stop_after(steps: int) -> Callable[[TrainingProgress], None]:
        def report(progress: TrainingProgress) -> None:
            if progress.message.startswith(f"step {steps},"):
                raise KeyboardInterrupt

        return report

    request = TrainingRequest(images, tmp_path / "x.safetensors", PLAN, base)
    with pytest.raises(KeyboardInterrupt):
        train_lora(request, stop_after(3))
    resumed = train_lora(replace(request, resume=True), _quiet)
    assert resumed.steps == 6


def test_a_picture_that_cannot_be_read_is_named(base: BaseModel, images: Path, tmp_path: Path) -> None:
    (images / "1.png").write_bytes(b"no picture")
    with pytest.raises(TrainingError, match=r"1\.png cannot be read"):
        _train(base, images, tmp_path / "x.safetensors")
