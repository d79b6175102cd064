"""Every layout of the catalogue is read in whole, and means what merged weights mean, or is refused for its reason."""

from pathlib import Path

import numpy as np
import pytest

from lora_catalogue import BEGIN, END, PAGE, READ, REFUSED, Entry, table
from lora_layouts import dense_delta
from schnell.adapters import convert_adapter, inspect_adapter, read_adapter
from schnell.errors import AdapterError


def name_of(entry: Entry) -> str:
    return entry.name


@pytest.mark.parametrize("entry", [each for each in READ if not each.known], ids=name_of)
def test_what_is_read_means_what_merged_weights_mean(entry: Entry, tmp_path: Path) -> None:
    file = entry.build()
    source = file.save(tmp_path / "lora.safetensors")
    converted = convert_adapter(source, tmp_path / "cache", peft_config=entry.config)
    modules = read_adapter(converted.path).modules
    assert set(modules) == set(file.deltas)
    rows = np.random.default_rng(4).standard_normal((2, 3072), np.float32)
    for name, form in modules.items():
        expected = file.deltas[name].apply(rows)
        error = np.linalg.norm(rows @ dense_delta(form).T - expected) / np.linalg.norm(expected)
        assert error < 1e-5, name
    warnings = converted.info.warnings
    assert any(entry.warning in each for each in warnings) if entry.warning else not warnings
    assert inspect_adapter(source).problem is None


@pytest.mark.parametrize("entry", REFUSED, ids=name_of)
def test_what_is_not_read_is_refused_for_its_reason(entry: Entry, tmp_path: Path) -> None:
    source = entry.build().save(tmp_path / "lora.safetensors")
    with pytest.raises(AdapterError, match=entry.refusal):
        convert_adapter(source, tmp_path / "cache", peft_config=entry.config)
    assert list(tmp_path.rglob("*.safetensors")) == [source]


def test_the_files_own_base_is_told_with_a_refusal(tmp_path: Path) -> None:
    file = next(each for each in REFUSED if each.name == "OFT (LyCORIS)").build()
    file.metadata["ss_base_model_version"] = "sdxl_base_v1-0"
    with pytest.raises(AdapterError, match="its metadata say sdxl_base_v1-0"):
        convert_adapter(file.save(tmp_path / "lora.safetensors"), tmp_path / "cache")


def test_there_are_forty_layouts_and_more_each_once() -> None:
    names = [each.name for each in (*READ, *REFUSED)]
    assert len(names) == len(set(names))
    assert len(READ) >= 40
    assert len(REFUSED) >= 30


def test_the_page_has_this_table() -> None:
    """`python tests/lora_catalogue.py` writes it."""
    assert PAGE.read_text().partition(BEGIN)[2].partition(END)[0] == table()
