"""docs/models.md names what is read and what is refused, as the code has it."""

from pathlib import Path

import pytest

from schnell.models import foreign_models
from schnell.models.checkpoint_header import GGUF_TYPES, SAFETENSORS_TYPES

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
REFUSED = " ".join(line for line in PAGE.splitlines() if "| refused" in line)


def test_every_type_of_gguf_is_named_and_no_other() -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith("GGUF's types"))
    named = line.partition(": ")[2].partition(".")[0].split(", ")
    assert sorted(named) == sorted(name for name, _, _ in GGUF_TYPES.values())


@pytest.mark.parametrize("name", sorted(SAFETENSORS_TYPES - {"F64"}))
def test_every_type_of_safetensors_is_named(name: str) -> None:
    assert name in PAGE


@pytest.mark.parametrize("name", ["[dev]", "Kontext", "Fill", "Canny", "Depth", "Chroma", "FLUX.2", "NF4", "SVDQuant"])
def test_what_is_refused_by_name_is_refused_on_the_page(name: str) -> None:
    meanings = [meaning for _, meaning in foreign_models.BY_TENSOR] + list(foreign_models.BY_PIPELINE.values())
    assert name in REFUSED
    assert any(name in meaning for meaning in meanings)
