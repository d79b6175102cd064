"""CLIP learns from what the model itself reads; nothing else of a model changes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from schnell.engine.subjects import read_subjects
from schnell.models.catalogue import find_model
from schnell_mini import style_finetuning
from schnell_mini.captions import COLOURS, IconLabel
from schnell_mini.data import Data
from schnell_mini.layout import APPEARANCE_CODES
from schnell_mini.loop import StageBudget
from schnell_mini.pictures import Icons
from schnell_mini.sampling import MiniPipeline, load_pipeline
from schnell_mini.style_finetuning import CLEAR, FAR, StyleLearner, commit, finetune_styles, importance

NAMES = ("red apple", "rocket", "house", "pizza", "snowman", "sunflower", "panda", "key")
STYLED = [f"{name} on a {colour} background, line art" for name in NAMES[:4] for colour in list(COLOURS)[1:]]


def quiet(stage: str, done: float, note: str) -> None: ...


@pytest.fixture(autouse=True)
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style_finetuning, "SAMPLED", 6)
    monkeypatch.setattr(style_finetuning, "BATCH", {"cpu": 16})
    monkeypatch.setattr(style_finetuning, "SUBJECTS", 50)


@pytest.fixture
def pipeline() -> MiniPipeline:
    return load_pipeline(find_model("schnell-mini").path)


@pytest.fixture(scope="module")
def data() -> Data:
    pictures = torch.randint(0, 256, (len(NAMES), 4, 256, 256), dtype=torch.uint8)
    return Data(Icons(pictures, tuple(IconLabel(name) for name in NAMES)), (), ((" the apple of my eye", 0),))


def test_batches_hold_captions_of_about_one_length(pipeline: MiniPipeline, data: Data) -> None:
    learner = StyleLearner(pipeline, data)
    batches = [next(learner.batches) for _ in range(6)]
    lengths = [(batch.ids > 0).sum(1) for batch in batches]
    assert all(int(each.max()) == batch.ids.shape[1] for each, batch in zip(lengths, batches, strict=True))
    within = sum(float(each.float().var()) for each in lengths) / len(lengths)
    assert within < 0.5 * float(torch.cat(lengths).float().var())


def test_a_code_that_changes_pictures_more_counts_more() -> None:
    codes = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    codes = codes - codes.mean(0)
    pictures = torch.zeros(40, 4, 2, 2)
    pictures[:, 3] = 255
    pictures[:, 0] = 100 + 30 * codes[:, :1, None]
    pictures[:, 1] = 100 + 10 * codes[:, 1:, None]
    assert importance(codes, pictures) == pytest.approx([0.75, 0.25], abs=1e-3)


def test_a_mixture_with_one_clear_name_means_that_name_and_one_with_none_stays() -> None:
    names = 3 * torch.eye(6)
    cosines = torch.tensor([FAR - 0.01, (FAR + CLEAR) / 2, CLEAR + 0.01, 1.0])
    rest = (1 - cosines.square()).sqrt() / 5**0.5
    codes = 2 * torch.cat([cosines[:, None], rest[:, None].expand(-1, 5)], 1)
    moved = commit(codes, names)
    assert torch.equal(moved[0], codes[0])
    assert torch.allclose(moved[1], (codes[1] + names[0]) / 2, atol=1e-5)
    assert torch.allclose(moved[2:], names[0].expand(2, -1))


def test_what_is_read_comes_back_to_what_it_was_taught_to_be(pipeline: MiniPipeline, data: Data) -> None:
    learner = StyleLearner(pipeline, data)
    undisturbed = learner.read_all(list(NAMES))
    generator = torch.Generator().manual_seed(0)
    for weights in learner.clip.encoder.layers[-1].parameters():
        weights.data += 0.2 * weights.std() * torch.randn(weights.shape, generator=generator)
    pipeline.text.clip.load_state_dict(learner.clip.state_dict())
    wanted = learner.grounds[1:].repeat(4, 1)
    before = (learner.read_all(STYLED)[:, APPEARANCE_CODES:] - wanted).square().mean()
    names = (learner.read_all(list(NAMES))[:, :APPEARANCE_CODES] - learner.names).square().mean()
    for _ in range(80):
        learner.update(0.0)
    learner.finish()
    assert (learner.read_all(STYLED)[:, APPEARANCE_CODES:] - wanted).square().mean() < 0.5 * before
    assert (learner.read_all(list(NAMES))[:, :APPEARANCE_CODES] - learner.names).square().mean() < 0.5 * names
    assert (learner.read_all(list(NAMES)) - undisturbed).abs().mean() < 0.5


def test_only_clip_and_the_list_of_subjects_change(data: Data, tmp_path: Path) -> None:
    shipped = find_model("schnell-mini").path
    made = finetune_styles(shipped, data, tmp_path, StageBudget(60, updates=2), quiet)
    old, new = (load_file(folder / "text_encoder/model.safetensors") for folder in (shipped, made))
    assert {value.dtype for value in new.values()} == {torch.float16}
    assert any(not torch.equal(old[name], new[name]) for name in old)
    files = {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()}
    same = {path for path in files if (shipped / path).read_bytes() == (made / path).read_bytes()}
    assert files - same == {Path("text_encoder/model.safetensors"), Path("subjects.safetensors")}
    subjects = read_subjects(made)
    assert subjects is not None
    assert subjects.names == NAMES
