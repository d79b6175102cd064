import runpy
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_command_and_option_is_documented_as_it_is() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "command_line_docs.py"))
    written = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert written == script["render"](), "run python scripts/command_line_docs.py"


def test_every_option_says_what_it_means() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows
    assert not [row for row in rows if row.split("|")[2].strip() == ""]
