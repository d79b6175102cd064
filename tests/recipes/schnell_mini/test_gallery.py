import torch

from schnell_mini.gallery import build_gallery, find_object, inside_frame, nearest_colour
from schnell_mini.pictures import render_icons


def icons() -> torch.Tensor:
    """A square, a wide bar and a disc, each in its own colour."""
    pictures = torch.zeros(3, 4, 256, 256, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    shapes = [
        (y - 128).abs().maximum((x - 128).abs()) < 90,
        (y - 128).abs() < 30,
        (y - 128) ** 2 + (x - 128) ** 2 < 8100,
    ]
    for i, shape in enumerate(shapes):
        pictures[i, i] = pictures[i, 3] = shape.to(torch.uint8) * 255
    return pictures


def test_each_training_picture_is_nearest_to_itself_at_another_size() -> None:
    pictures = icons()
    gallery = build_gallery(pictures)
    drawn = render_icons(pictures, torch.ones(3, 3), 120, 256) / 2 + 0.5
    assert [gallery.nearest(picture) for picture in drawn] == [0, 1, 2]
    assert gallery.ranks(drawn[2], 2) == 0
    assert gallery.ranks(drawn[2], 1) > 0


def test_the_object_is_found_by_its_difference_from_the_border() -> None:
    picture = torch.full((3, 64, 96), 0.9)
    picture[:, 10:30, 40:80] = 0.2
    box = find_object(picture)
    assert (box.top, box.bottom, box.left, box.right) == (10, 30, 40, 80)
    assert inside_frame(picture)


def test_an_object_cut_by_the_edge_is_not_inside_the_frame() -> None:
    picture = torch.ones(3, 64, 64)
    picture[:, 20:40, 30:] = 0
    assert not inside_frame(picture)


def test_an_empty_picture_has_no_object_inside_the_frame() -> None:
    assert not inside_frame(torch.ones(3, 64, 64))


def test_the_border_names_the_background() -> None:
    drawn = render_icons(icons()[:1], torch.tensor([[0.3, 0.48, 0.85]]), 120, 256) / 2 + 0.5
    assert nearest_colour(drawn[0]) == "blue"
