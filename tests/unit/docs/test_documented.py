from pathlib import Path

import pytest

import schnell.web.submission  # noqa: F401 - defines errors of its own
from schnell.errors import SchnellError
from schnell.settings import Settings

DOCS = Path(__file__).parents[3] / "docs"


def all_errors(kind: type[SchnellError] = SchnellError) -> set[type[SchnellError]]:
    return {kind}.union(*(all_errors(each) for each in kind.__subclasses__()))


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    assert f"`SCHNELL_{name.upper()}`" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("code", sorted({kind.code for kind in all_errors()}))
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in (DOCS / "errors.md").read_text()
