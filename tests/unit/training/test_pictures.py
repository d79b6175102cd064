from pathlib import Path

import pytest
from PIL import Image

from schnell.errors import TrainingError
from schnell.training.pictures import find_pictures, open_picture


def _save(path: Path, colour: object = "red", mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Path:
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def test_a_picture_without_captions_is_called_by_the_trigger_word(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    assert find_pictures(tmp_path, " neon ")[0].captions == ("neon",)


def test_each_line_is_a_caption_and_gets_the_trigger_word_if_it_lacks_it(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red apple\n\nNeon pear \n", "utf-8")
    assert find_pictures(tmp_path, "neon")[0].captions == ("neon, a red apple", "Neon pear")


def test_an_empty_caption_file_counts_as_none(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n \n")
    assert find_pictures(tmp_path, "neon")[0].captions == ("neon",)


def test_pictures_come_in_the_order_of_names_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("b.webp", "a.JPG", "c.bmp"):
        _save(tmp_path / name)
    (tmp_path / "notes.md").write_text("hello")
    assert [picture.path.name for picture in find_pictures(tmp_path, "neon")] == ["a.JPG", "b.webp", "c.bmp"]


@pytest.mark.parametrize(
    ("trigger", "folder", "told"),
    [(" ", ".", "--trigger"), ("neon", "missing", "folder of pictures"), ("neon", ".", "holds no pictures")],
)
def test_unusable_input_is_named_with_its_fix(tmp_path: Path, trigger: str, folder: str, told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        find_pictures(tmp_path / folder, trigger)


def test_captions_that_are_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TrainingError, match=r"a\.txt cannot be read as UTF-8"):
        find_pictures(tmp_path, "neon")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_picture_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"broken\.png cannot be read.*remove it"):
        open_picture(path)


def test_a_picture_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", size=(64, 64))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TrainingError, match="cannot be read"):
        open_picture(path)


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    picture = open_picture(_save(tmp_path / "a.png", (255, 0, 0, 0), "RGBA"))
    assert picture.mode == "RGB"
    assert picture.getpixel((3, 3)) == (255, 255, 255)


def test_a_picture_is_turned_upright_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 16)).save(tmp_path / "a.jpg", exif=exif)
    assert open_picture(tmp_path / "a.jpg").size == (16, 8)


def test_a_file_of_another_format_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", "GIF")
    with pytest.raises(TrainingError, match="cannot be read"):
        open_picture(tmp_path / "a.png")
