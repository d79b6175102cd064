import io

import pytest
from PIL import Image

from schnell.errors import TrainingError
from schnell_mini.train_loras import MAX_PREVIEW_BYTES, compress_preview, pick_bundled


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(TrainingError, match=r"'neon'.*black-light, flat, line"):
        pick_bundled(["neon"])


def test_a_preview_that_is_too_large_loses_quality_until_it_fits() -> None:
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    data = compress_preview(noise)
    assert len(data) <= MAX_PREVIEW_BYTES
    assert Image.open(io.BytesIO(data)).size == (256, 256)


def test_a_preview_that_cannot_fit_is_refused() -> None:
    with pytest.raises(TrainingError, match="larger than 30,000 bytes"):
        compress_preview(Image.effect_noise((1024, 1024), 120).convert("RGB"))
