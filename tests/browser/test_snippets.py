"""The code beside the picture, copied from the page and run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from browser.conftest import Visit, copied, settle, shown_picture
from servers import KEY

_PROMPT = 'it\'s a "red" apple $HOME \\ `tick` ${x} 🍎\nsecond line \\n'
_COMMANDS = {
    "curl": ("snippet.sh", ["sh"]),
    "python": ("snippet.py", [sys.executable]),
    "javascript": ("snippet.mjs", ["node"]),
    "openai": ("snippet.py", [sys.executable]),
    "replicate": ("snippet.py", [sys.executable]),
}


def _run(client: str, snippet: str, folder: Path) -> list[bytes]:
    """The pictures that a copied snippet gives, run as a file of its language."""
    name, command = _COMMANDS[client]
    (folder / name).write_text(snippet, encoding="utf-8")
    done = subprocess.run([*command, name], cwd=folder, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    if client == "curl":
        return [httpx.get(json.loads(done.stdout)["aiRecord"]["temporaryUrl"]).content]
    return [path.read_bytes() for path in sorted(folder.glob("picture*"))]


@pytest.mark.parametrize("client", _COMMANDS)
def test_a_copied_snippet_gives_the_same_picture(visit: Visit, client: str, tmp_path: Path) -> None:
    if not shutil.which(_COMMANDS[client][1][0]):
        pytest.skip("node is not installed: apt-get install nodejs")
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        page.fill("#prompt", _PROMPT)
        page.check("input[name=aspect_ratio][value='16:9']", force=True)
        page.check("input[name=megapixels][value='0.25']", force=True)
        page.click("#run")
        settle(page)
        snippet = copied(page, client)
        assert KEY in snippet
        assert _run(client, snippet, tmp_path) == [shown_picture(page)]
        assert visitor.complaints == []


@pytest.mark.parametrize("client", [each for each in _COMMANDS if each != "curl"])
def test_a_snippet_for_several_pictures_gives_them_all(visit: Visit, client: str, tmp_path: Path) -> None:
    if not shutil.which(_COMMANDS[client][1][0]):
        pytest.skip("node is not installed: apt-get install nodejs")
    with visit() as visitor:
        page = visitor.draw("three", num_outputs=3, megapixels="0.25", output_format="png", lora_weights="black-light")
        sources = page.locator(".pictures:not(.previews) img").evaluate_all("all => all.map(each => each.src)")
        assert _run(client, copied(page, client), tmp_path) == [httpx.get(source).content for source in sources]


def test_the_reference_example_is_a_click_away_and_the_documents_own_curl(visit: Visit) -> None:
    with visit(key=None) as visitor:
        page = visitor.open("/")
        assert '"prompt": "red apple on a blue background"' in copied(page, "curl")
        page.get_by_role("link", name="The reference example").click()
        page.wait_for_load_state("networkidle")
        expected = f"""curl -X POST "{visitor.url}/api/features" \\
-H "API-KEY: <your-api-key>" \\
-H "Content-Type: application/json" \\
-d '{{
"type": "IMAGE_GENERATOR",
"model": "black-forest-labs/flux-schnell-lora",
"promptObject": {{
"prompt": "Futuristic cityscape at night, neon lights, cyberpunk style",
"aspect_ratio": "1:1",
"num_inference_steps": 4,
"go_fast": true,
"lora_weights": "fofr/flux-black-light",
"lora_scale": 0.8,
"megapixels": "1"
}}
}}'"""
        assert copied(page, "curl") == expected
        assert page.inner_text("#endpoint") == f"{visitor.url}/api/features"


def test_untouched_fields_are_left_out_of_the_code_and_of_the_request(visit: Visit) -> None:
    with visit() as visitor:
        page = visitor.open("/?prompt=x")
        with page.expect_request("**/api/features?isStreaming=true") as sent:
            page.click("#run")
        settle(page)
        body = sent.value.post_data_json
        assert body == {
            "type": "IMAGE_GENERATOR",
            "model": "black-forest-labs/flux-schnell-lora",
            "promptObject": {"prompt": "x"},
        }
        in_curl = json.loads(copied(page, "curl").split("-d '")[1].removesuffix("'"))
        seed = in_curl["promptObject"].pop("seed")
        assert in_curl == body
        assert page.inner_text("#result-facts").startswith(f"seed {seed} ")
