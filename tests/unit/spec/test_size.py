import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import InvalidFieldError
from schnell.spec import resolve_size

AT_ONE_MEGAPIXEL = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "9:16": (768, 1344),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
}


@pytest.mark.parametrize(("ratio", "size"), AT_ONE_MEGAPIXEL.items())
def test_each_ratio_has_its_exact_size_and_a_quarter_megapixel_halves_it(ratio: str, size: tuple[int, int]) -> None:
    assert resolve_size(ratio, "1") == size
    assert resolve_size(ratio, "0.25") == (size[0] // 2, size[1] // 2)


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_custom_takes_exactly_multiples_of_32_from_256_to_1440(width: int, height: int) -> None:
    if all(256 <= side <= 1440 and side % 32 == 0 for side in (width, height)):
        assert resolve_size("custom", width=width, height=height) == (width, height)
    else:
        with pytest.raises(InvalidFieldError):
            resolve_size("custom", width=width, height=height)


@pytest.mark.parametrize(
    ("sides", "size"), [({}, (1024, 1024)), ({"width": 512}, (512, 1024)), ({"height": 256}, (1024, 256))]
)
def test_a_custom_side_that_is_not_given_is_1024(sides: dict[str, int], size: tuple[int, int]) -> None:
    assert resolve_size("custom", width=sides.get("width"), height=sides.get("height")) == size


def test_other_apis_have_a_finer_grid() -> None:
    assert resolve_size("custom", width=272, height=1008, side_step=16) == (272, 1008)


@pytest.mark.parametrize(("arguments", "field"), [(("7:3", "1"), "aspect_ratio"), (("1:1", "2"), "megapixels")])
def test_unknown_ratios_and_megapixels_are_refused_by_name(arguments: tuple[str, str], field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        resolve_size(*arguments)
    assert [problem.field for problem in caught.value.problems] == [field]
