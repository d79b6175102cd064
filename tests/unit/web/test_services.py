import pytest

from schnell.web.services import ServedModel


@pytest.mark.parametrize(
    ("name", "label"),
    [("schnell-mini", "schnell-mini"), ("/models/FLUX.1-schnell/", "FLUX.1-schnell"), ("/modèles/petit-é", "petit-?")],
)
def test_a_folders_last_part_names_its_model(name: str, label: str) -> None:
    assert ServedModel(name, ("a/b",)).label == label


def test_a_model_is_found_by_its_ids_and_its_label_alone() -> None:
    model = ServedModel("/models/flux", ("a/b", "b"))
    assert [model.find(name) for name in ("a/b", "b", "flux", "a", "/models/flux", "")] == ["a/b", "b", "flux"] + [
        None
    ] * 3
