import pytest

from schnell.spec import ASPECT_RATIOS, GenerationSpec, Size
from schnell.web.dialects.model_list import REPLICATE_RATIOS


@pytest.mark.parametrize("ratio", REPLICATE_RATIOS)
def test_replicates_shapes_can_be_drawn_at_either_resolution(ratio: str) -> None:
    whole = REPLICATE_RATIOS[ratio]
    for size in (whole, Size(whole.width // 2, whole.height // 2)):
        assert GenerationSpec("x", size).size == size


@pytest.mark.parametrize("ratio", REPLICATE_RATIOS)
def test_replicates_shapes_are_near_their_ratio_and_a_megapixel(ratio: str) -> None:
    size = REPLICATE_RATIOS[ratio]
    across, down = map(int, ratio.split(":"))
    assert size.width / size.height == pytest.approx(across / down, rel=0.05)
    assert 0.7 <= size.width * size.height / 1024**2 <= 1


def test_replicates_shapes_are_those_that_the_native_api_lacks() -> None:
    assert not REPLICATE_RATIOS.keys() & ASPECT_RATIOS.keys()
