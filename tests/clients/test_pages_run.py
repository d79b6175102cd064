"""Every piece of code on the clients' pages runs as it stands there, but for the address and the key."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from client_service import Service
from node_packages import packages

__all__ = ["packages"]
PAGES = Path(__file__).parents[2] / "docs" / "clients"
_FENCE = re.compile(r"```(python|js|sh)\n(.*?)```", re.DOTALL)


def read_code(page: Path, language: str) -> str:
    """All code of one language on a page, in order."""
    return "\n".join(code for found, code in _FENCE.findall(page.read_text("utf-8")) if found == language)


SNIPPETS = [(page.stem, language) for page in sorted(PAGES.glob("*.md")) for language in ("python", "js", "sh")]
SNIPPETS = [(page, language) for page, language in SNIPPETS if read_code(PAGES / f"{page}.md", language)]


def test_every_dialect_has_code_to_run() -> None:
    assert {page for page, _ in SNIPPETS} == {"automatic1111", "huggingface", "openai", "replicate"}


@pytest.mark.parametrize(("page", "language"), SNIPPETS, ids=["-".join(each) for each in SNIPPETS])
def test_the_code_of_a_page_runs_and_leaves_a_picture(
    page: str, language: str, service: Service, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    code = read_code(PAGES / f"{page}.md", language)
    code = code.replace("http://127.0.0.1:8000", service.url).replace("YOUR-KEY", service.key)
    commands = {"python": [sys.executable, "-c", code], "sh": ["bash", "-ec", code]}
    if language == "js":
        # Node looks for packages beside the script
        script = request.getfixturevalue("packages") / f"page-{page}.mjs"
        script.write_text(code)
        commands["js"] = ["node", str(script)]
    done = subprocess.run(commands[language], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.glob("apple.*")
    assert min(Image.open(picture).size) >= 256
