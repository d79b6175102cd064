import hashlib
import io
import json
import tarfile
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from schnell.errors import TrainingError
from schnell.training.pictures import find_pictures
from schnell_mini import lora_icons as icons
from schnell_mini.captions import Entry
from schnell_mini.lora_styles import BUNDLED, choose_icons, write_captions, write_style_pictures
from schnell_mini.packages import Package
from schnell_mini.train_loras import MAX_PREVIEW_BYTES, compress_preview, pick_bundled

APPLE = Entry("red apple", ("fruit", "food", "ripe"))


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


def test_a_chosen_part_of_the_icons_is_the_same_each_time() -> None:
    all_icons = [icons.Icon(str(i), APPLE, lambda: Image.new("RGBA", (1, 1))) for i in range(50)]
    first, again = (choose_icons(all_icons, 10, Random("x")) for _ in range(2))
    assert [icon.code for icon in first] == [icon.code for icon in again]
    assert len(choose_icons(all_icons, 99, Random("x"))) == 50


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small packages of the same form as the real ones, in the place where fetched archives lie."""
    names = json.dumps([{"label": "Red Apple", "hexcode": "1F34E", "tags": ["fruit"], "group": 4}])
    picture = io.BytesIO()
    Image.new("RGBA", (200, 256), (255, 0, 0, 255)).save(picture, "WEBP", lossless=True)
    files = {
        "NAMES": {"en/data.json": names.encode()},
        "PICTURES": {"assets/1f34e.webp": picture.getvalue(), "assets/1f9e6.webp": picture.getvalue()},
    }
    archives = tmp_path / "packages" / "archives"
    archives.mkdir(parents=True)
    for name, content in files.items():
        sha256 = _pack(archives / f"{name}.tgz", content)
        monkeypatch.setattr(icons, name, Package("npm", name.lower(), "1.0.0", sha256, "MIT"))
    return tmp_path / "packages"


def _pack(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pictures_are_joined_with_names_by_their_characters(packages: Path) -> None:
    [icon] = icons.read_icons(packages)
    assert icon.entry.label == "red apple"
    assert icon.draw().getpixel((128, 128)) == (255, 0, 0, 255)


def test_style_pictures_are_a_folder_that_can_be_trained_on(packages: Path, tmp_path: Path) -> None:
    [flat] = pick_bundled(["flat"])
    write_style_pictures(flat, 10, packages, tmp_path / "flat", lambda _: None)
    [picture] = find_pictures(tmp_path / "flat", flat.trigger)
    assert Image.open(picture.path).size == (256, 256)
    assert all(flat.trigger in caption for caption in picture.captions)
