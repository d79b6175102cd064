"""Which icon a picture shows: the training picture whose object is nearest, both cut out by their bounding boxes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from schnell_mini.captions import COLOURS
from schnell_mini.pictures import ICON_SIDE, composite

CROP_SIDE = 64
THRESHOLD = 0.1
RIM = 4


@dataclass(frozen=True)
class Box:
    """Rows and columns of an object, `bottom` and `right` excluded."""

    top: int
    bottom: int
    left: int
    right: int


def border_colour(picture: Tensor) -> Tensor:
    """The median colour `[3]` of the outermost pixels of `[3, H, W]`."""
    edges = (picture[:, :RIM], picture[:, -RIM:], picture[:, :, :RIM], picture[:, :, -RIM:])
    return torch.cat([edge.flatten(1) for edge in edges], 1).median(1).values


def nearest_colour(picture: Tensor) -> str:
    """The known background colour nearest to the mean of the border."""
    edges = (picture[:, :RIM], picture[:, -RIM:], picture[:, :, :RIM], picture[:, :, -RIM:])
    mean = torch.cat([edge.flatten(1) for edge in edges], 1).mean(1)
    distances = (torch.tensor(list(COLOURS.values())) - mean).pow(2).sum(1)
    return list(COLOURS)[int(distances.argmin())]


def object_lines(hits: Tensor, least: int) -> tuple[int, int]:
    """The first line with at least `least` pixels of the object, and the one after the last; all if there is none."""
    lines = (hits >= least).nonzero().flatten()
    return (int(lines[0]), int(lines[-1]) + 1) if len(lines) else (0, len(hits))


def find_object(picture: Tensor) -> Box:
    """Where the picture `[3, H, W]` differs from its border colour; a few stray pixels do not count."""
    mask = (picture - border_colour(picture)[:, None, None]).abs().amax(0) > THRESHOLD
    least = max(2, picture.shape[-1] // 64)
    return Box(*object_lines(mask.sum(1), least), *object_lines(mask.sum(0), least))


def crop_object(picture: Tensor) -> Tensor:
    """The object within its bounding box at 64 x 64."""
    box = find_object(picture)
    cut = picture[None, :, box.top : box.bottom, box.left : box.right]
    return functional.interpolate(cut, size=(CROP_SIDE, CROP_SIDE), mode="bilinear", antialias=True)[0]


def inside_frame(picture: Tensor) -> bool:
    """Whether the object stays off all four edges."""
    box, (height, width) = find_object(picture), picture.shape[-2:]
    return box.top > 0 and box.left > 0 and box.bottom < height and box.right < width


@dataclass(frozen=True)
class Gallery:
    """Every training picture's object on white, `[N, 3 * 64 * 64]`: an index for nearest-neighbour search."""

    objects: Tensor

    def ranks(self, picture: Tensor, truth: int) -> int:
        """How many training pictures are nearer than the true one (0 is a hit)."""
        distances = (self.objects - crop_object(picture).flatten()).pow(2).sum(1)
        return int((distances < distances[truth]).sum())

    def nearest(self, picture: Tensor) -> int:
        """The number of the nearest training picture."""
        return int((self.objects - crop_object(picture).flatten()).pow(2).sum(1).argmin())


def build_gallery(pictures: Tensor) -> Gallery:
    """Cut every icon (uint8 premultiplied `[N, 4, 256, 256]`) out of a white picture."""
    white = torch.ones(1, 3)
    onto_white = (composite(one[None].float() / 255, white, ICON_SIDE, ICON_SIDE)[0] for one in pictures)
    return Gallery(torch.stack([crop_object(picture).flatten() for picture in onto_white]))
