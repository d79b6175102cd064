from pathlib import Path
from random import Random

from PIL import Image

from schnell.training.pictures import find_pictures
from schnell_mini.captions import IconLabel
from schnell_mini.lora_icons import Icon
from schnell_mini.lora_styles import BUNDLED, choose_icons, write_captions, write_style_pictures

APPLE = IconLabel("red apple", ("fruit", "food", "ripe"))


def test_every_caption_has_the_trigger_word_and_names_the_icon() -> None:
    captions = write_captions("line art", APPLE, None, Random(1))
    assert all("line art" in caption for caption in captions)
    assert sum("red apple" in caption for caption in captions) == 3


def test_a_background_is_named_in_every_caption() -> None:
    assert all("teal" in caption for caption in write_captions("line art", APPLE, "teal", Random(1)))


def test_only_black_light_answers_to_the_reference_documents_name() -> None:
    named = [lora.name for lora in BUNDLED if "fofr/flux-black-light" in lora.aliases]
    assert named == ["black-light"]


def test_names_and_triggers_are_unique() -> None:
    assert len({lora.name for lora in BUNDLED}) == len({lora.trigger for lora in BUNDLED}) == len(BUNDLED) == 5


def test_a_chosen_part_of_the_icons_is_the_same_each_time() -> None:
    all_icons = [Icon(str(i), APPLE, lambda: Image.new("RGBA", (1, 1))) for i in range(50)]
    first, again = (choose_icons(all_icons, 10, Random("x")) for _ in range(2))
    assert [icon.code for icon in first] == [icon.code for icon in again]
    assert len(choose_icons(all_icons, 99, Random("x"))) == 50


def test_style_pictures_are_a_folder_that_can_be_trained_on(packages: Path, tmp_path: Path) -> None:
    [flat] = [lora for lora in BUNDLED if lora.name == "flat"]
    write_style_pictures(flat, 10, packages, tmp_path / "flat", lambda _: None)
    [picture] = find_pictures(tmp_path / "flat", flat.trigger)
    assert Image.open(picture.path).size == (256, 256)
    assert all(flat.trigger in caption for caption in picture.captions)
