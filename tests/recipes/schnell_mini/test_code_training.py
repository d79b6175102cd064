"""CLIP commits to one icon wherever a caption fits several."""

import pytest
import torch
from torch import Tensor

from schnell_mini.appearance_codes import AppearanceCodes, BackgroundCodes
from schnell_mini.caption_dataset import CaptionBatch, CaptionDataset
from schnell_mini.code_conditioning import Codebook, CodeEmbedder
from schnell_mini.code_training import CodeLearner, nearness_loss, read_codes
from schnell_mini.layout import ALL_CODES, APPEARANCE_CODES
from schnell_mini.networks import Shape, build_clip, build_transformer
from schnell_mini.text_classifier import ClipClassifier, ClipLearner

ICONS, CPU = 3, torch.device("cpu")
SHARED, OWN = [5, 1], [6, 1]


def ids_of(rows: list[list[int]]) -> Tensor:
    return torch.tensor([row + [0] * (32 - len(row)) for row in rows])


@pytest.fixture
def dataset() -> CaptionDataset:
    """One text that two icons share, the second more often, and one of its own for the third."""
    ids = ids_of([SHARED, SHARED, SHARED, OWN])
    unambiguous = torch.tensor([False, False, False, True])
    return CaptionDataset(ids, torch.tensor([0, 1, 1, 2]), torch.zeros(4, dtype=torch.long), unambiguous)


def test_a_code_that_is_nearest_to_its_own_icon_costs_least() -> None:
    codes = torch.zeros(2, APPEARANCE_CODES)
    codes[0, 0], codes[1, 0] = 1.0, -1.0
    appearance = AppearanceCodes(codes, torch.ones(APPEARANCE_CODES))
    batch = CaptionBatch(torch.zeros(2, 1), torch.tensor([0, 1]), torch.zeros(2), torch.ones(2, dtype=torch.bool))
    embedded = CodeEmbedder(ALL_CODES)(torch.cat([codes, torch.zeros(2, ALL_CODES - APPEARANCE_CODES)], 1))
    own, swapped = (nearness_loss(each, batch, appearance) for each in (embedded, embedded.flip(0)))
    assert own < 0.5 < swapped


def test_codes_are_those_of_one_icon_and_not_a_mixture(dataset: CaptionDataset) -> None:
    torch.manual_seed(0)
    codebook = Codebook(
        AppearanceCodes(torch.randn(ICONS, APPEARANCE_CODES), torch.ones(APPEARANCE_CODES)),
        BackgroundCodes(torch.randn(14, 3), torch.randn(3, 16)),
    )
    classifier = ClipClassifier(build_clip(Shape(clip_layers=1, clip_hidden=64), 8), 256, ICONS)
    naming = ClipLearner(classifier, dataset, CPU)
    for _ in range(60):
        naming.update(0.0)
    transformer = build_transformer(Shape(single_blocks=1, double_blocks=1))
    learner = CodeLearner(transformer, classifier, dataset, codebook, CPU)
    assert set(learner.pick_icons(dataset.sample(learner.rng, 64)).icons.tolist()) == {1, 2}
    for _ in range(300):
        learner.update(0.0)
    learner.finish()
    with torch.no_grad():
        pooled = classifier.encoder(input_ids=ids_of([SHARED, OWN])).pooler_output
        codes = read_codes(learner.embedder(pooled))
    assert codes.shape == (2, ALL_CODES)
    nearest = torch.cdist(codes[:, :APPEARANCE_CODES], codebook.appearance.codes)
    assert nearest.argmin(1).tolist() == [1, 2]
    mixture = codebook.appearance.codes[:2].mean(0)
    assert nearest[0, 1] < (codes[0, :APPEARANCE_CODES] - mixture).norm()
