import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_libraries import bundle
from schnell.errors import AdapterError
from schnell.loras.bundled import BundledLora, read_bundled
from schnell.models.folder import embedded_home


def test_the_embedded_models_loras_have_a_card_and_a_preview_each() -> None:
    found = read_bundled(embedded_home() / "loras")
    assert [lora.name for lora in found] == ["black-light", "blueprint", "flat", "line", "pixel"]
    for lora in found:
        assert lora.description
        assert lora.trigger_words
        assert lora.licence
        assert lora.preview is not None
        assert lora.preview.read_bytes()[8:12] == b"WEBP"


def test_cards_are_read_by_name_and_a_file_without_one_is_left_out(tmp_path: Path) -> None:
    bundle(tmp_path, "Zebra", aliases=["Fofr/Zebra"])
    bundle(tmp_path, "apple", description="An apple", trigger_words=["red"], licence="cc0-1.0")
    (tmp_path / "apple.webp").touch()
    (tmp_path / "plain.safetensors").touch()
    zebra, apple = read_bundled(tmp_path)
    assert apple == BundledLora(
        "apple", tmp_path / "apple.safetensors", "An apple", ("red",), "cc0-1.0", (), tmp_path / "apple.webp"
    )
    assert (zebra.name, zebra.description, zebra.licence, zebra.preview) == ("zebra", "", None, None)


def test_a_lora_answers_to_its_name_and_aliases_in_any_case(tmp_path: Path) -> None:
    bundle(tmp_path, "zebra", aliases=["Fofr/Zebra"])
    [zebra] = read_bundled(tmp_path)
    assert all(map(zebra.answers_to, ["zebra", "ZEBRA", "fofr/zebra", "Fofr/Zebra"]))
    assert not any(map(zebra.answers_to, ["zebr", "fofr", "", "zebra.safetensors"]))


def test_where_there_is_no_folder_there_are_none(tmp_path: Path) -> None:
    assert read_bundled(tmp_path / "none") == ()


@pytest.mark.parametrize("card", ["", "[]", "7", '{"aliases": 7}', '{"trigger_words": null}', "\xff"])
def test_a_card_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path, card: str) -> None:
    (tmp_path / "x.safetensors").touch()
    (tmp_path / "x.json").write_bytes(card.encode("latin-1"))
    with pytest.raises(AdapterError, match=r"x\.json is not a LoRA's card"):
        read_bundled(tmp_path)


@settings(deadline=None)
@given(st.lists(st.text(max_size=10), max_size=3), st.text(max_size=10))
def test_what_a_card_says_comes_back(tmp_path_factory: pytest.TempPathFactory, words: list[str], text: str) -> None:
    folder = tmp_path_factory.mktemp("bundled")
    (folder / "x.safetensors").touch()
    (folder / "x.json").write_text(json.dumps({"trigger_words": words, "description": text, "aliases": words}))
    [found] = read_bundled(folder)
    assert (found.trigger_words, found.description, found.aliases) == (tuple(words), text, tuple(words))
