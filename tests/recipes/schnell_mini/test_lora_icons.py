from pathlib import Path

from schnell_mini.lora_icons import read_icons


def test_pictures_are_joined_with_names_by_their_characters(packages: Path) -> None:
    [icon] = read_icons(packages)
    assert icon.label.name == "red apple"
    assert icon.draw().getpixel((128, 128)) == (255, 0, 0, 255)
