import re
import runpy
from pathlib import Path

import pytest

import schnell.web.app  # noqa: F401 - defines errors of its own
from schnell.errors import ClosingError, SchnellError
from schnell.settings import Settings

DOCS = Path(__file__).parents[3] / "docs"
#: What the embedded model draws; the second one is made by its recipe (`python -m schnell_mini sheet`).
SHEETS = {"schnell-mini.webp", "schnell-mini-loras.webp"}


def all_errors(kind: type[SchnellError] = SchnellError) -> set[type[SchnellError]]:
    return {kind}.union(*(all_errors(each) for each in kind.__subclasses__()))


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    assert f"`SCHNELL_{name.upper()}`" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("code", sorted({kind.code for kind in all_errors()}))
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in (DOCS / "errors.md").read_text()


@pytest.mark.parametrize("kind", sorted(all_errors(), key=str))
def test_the_errors_page_says_whether_to_retry(kind: type[SchnellError]) -> None:
    lines = (DOCS / "errors.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| `{kind.code}` |"))
    *_, charged, retry, _ = (cell.strip() for cell in row.split("|"))
    expected = "once, for its picture" if kind is ClosingError else "no"
    assert (charged, retry) == (expected, "yes" if kind.retry_helps else "no")


def test_the_pictures_that_are_shown_are_those_that_the_script_makes() -> None:
    script = runpy.run_path(str(DOCS.parent / "scripts" / "screenshots.py"))
    made = {shot.file_name for shot in script["SHOTS"]}
    pages = [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
    shown = {name for page in pages for name in re.findall(r"pictures/([\w-]+\.webp)", page.read_text())}
    assert shown - SHEETS == made
    # drawings are made by hand
    photographed = {path.name for path in (DOCS / "pictures").iterdir() if path.suffix != ".svg"}
    assert photographed == made | SHEETS
