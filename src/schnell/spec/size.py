"""Sizes of pictures: the aspect ratios of the API in pixels, and what a custom size may be."""

from typing import Final, NamedTuple

from schnell.errors import FieldProblem, InvalidFieldError


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


CUSTOM_RATIO: Final = "custom"
MEGAPIXELS: Final = ("0.25", "1")
# the reference document leaves custom sizes open: these are the limits that it has for a sibling model
MIN_SIDE: Final = 256
MAX_SIDE: Final = 1440
SIDE_STEP: Final = 32
#: What FLUX itself can draw: a token is 16 pixels wide and high. Other APIs' sides may lie on this grid.
TOKEN_SIDE: Final = 16
#: A side of `custom` that is not given, as that sibling model has it.
DEFAULT_SIDE: Final = 1024

#: Pixels at one megapixel (1024 x 1024) and about as many for the other ratios; a quarter megapixel halves both sides.
ASPECT_RATIOS: Final[dict[str, Size]] = {
    "1:1": Size(1024, 1024),
    "16:9": Size(1344, 768),
    "9:16": Size(768, 1344),
    "3:2": Size(1216, 832),
    "2:3": Size(832, 1216),
    "4:5": Size(896, 1088),
    "5:4": Size(1088, 896),
}


def resolve_size(
    aspect_ratio: str = "1:1",
    megapixels: str = "1",
    width: int | None = None,
    height: int | None = None,
    side_step: int = SIDE_STEP,
) -> Size:
    """The width and height in pixels that a request asks for.

    `width` and `height` are read only with the ratio `custom`, which ignores `megapixels`; each is 1024 where it is not
    given, and a multiple of `side_step`.

    Raises:
        InvalidFieldError: an unknown ratio or megapixel figure, or a side outside 256-1440 or off the grid.
    """
    if aspect_ratio == CUSTOM_RATIO:
        return _custom_size(width, height, side_step)
    if aspect_ratio not in ASPECT_RATIOS:
        raise InvalidFieldError(
            FieldProblem("aspect_ratio", f"must be one of {', '.join([*ASPECT_RATIOS, CUSTOM_RATIO])}")
        )
    if megapixels not in MEGAPIXELS:
        raise InvalidFieldError(FieldProblem("megapixels", f"must be one of {', '.join(MEGAPIXELS)}"))
    whole = ASPECT_RATIOS[aspect_ratio]
    return whole if megapixels == "1" else Size(whole.width // 2, whole.height // 2)


def _custom_size(width: int | None, height: int | None, side_step: int) -> Size:
    size = Size(DEFAULT_SIDE if width is None else width, DEFAULT_SIDE if height is None else height)
    named = (("width", size.width), ("height", size.height))
    problems = [problem for name, side in named if (problem := side_problem(name, side, side_step))]
    if problems:
        raise InvalidFieldError(*problems)
    return size


def side_problem(field: str, side: int, side_step: int = SIDE_STEP) -> FieldProblem | None:
    """What is wrong with `side` pixels as the field `field` (`width` or `height`); None if nothing is."""
    if MIN_SIDE <= side <= MAX_SIDE and side % side_step == 0:
        return None
    return FieldProblem(field, f"must be {MIN_SIDE}-{MAX_SIDE} and a multiple of {side_step}, got {side}")
