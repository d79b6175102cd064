import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from schnell.spec import ASPECT_RATIOS
from servers import Server, run_server

#: Every parameter, tip, use case and note of the document that the API follows.
_REFERENCE = """
API-KEY | Content-Type | IMAGE_GENERATOR | black-forest-labs/flux-schnell-lora | promptObject | prompt | aspect_ratio
num_inference_steps | seed | output_quality | disable_safety_checker | go_fast | lora_weights | lora_scale | megapixels
Square images, social media posts | Widescreen, video thumbnails | Vertical video, mobile screens | Standard photography
Portrait photography | Instagram posts | Landscape photography | Use specific width/height values
fofr/flux-black-light | Black light/neon effects | Glowing, fluorescent aesthetics | Community-created style models
Fewer steps = faster generation (optimized for speed) | Enable maximum speed mode
LoRA influence strength (higher = stronger effect) | Output resolution (0.25 = ~512×512, 1 = ~1024×1024)
Rapid Prototyping | Style Exploration | Social Media Content | Creative Experimentation | Game Development
Use 4 steps for best quality-to-speed ratio | for maximum speed | 1-2 steps for ultra-fast drafts
Start with scale 0.8 for balanced effects | Scale 1.5+ for stronger style influence
Combine popular LoRA models for unique looks | 1 MP for final outputs | 0.25 MP for rapid iterations
Higher quality settings increase generation time | personal use license | optimized for speed (1-4 steps)
Flux Pro or Flux Dev models | aiRecordDetail | resultObject | temporaryUrl | teamUser | creditLimit | usedCredit
"""  # noqa: RUF001 - as the document writes it


# none of these changes anything on the server: one is enough for all of them
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with run_server(tmp_path_factory.mktemp("server")) as running:
        yield running


async def _all_pages(server: Server) -> dict[str, str]:
    index = (await server.client.get("/llms.txt")).text
    paths = re.findall(r"\(http://[^/]+(/docs/[a-z0-9-]+\.md)\)", index)
    return {path: (await server.client.get(path)).text for path in paths}


async def test_everything_in_the_reference_document_has_its_place(server: Server) -> None:
    text = " ".join("\n".join((await _all_pages(server)).values()).split())
    missing = [each for line in _REFERENCE.strip().splitlines() for each in line.split(" | ") if each not in text]
    assert missing == []


async def test_tables_come_from_the_schema(server: Server) -> None:
    page = (await server.client.get("/docs/flux-schnell-lora.md")).text
    assert "<!-- generated" not in page
    for ratio, size in ASPECT_RATIOS.items():
        assert f"| `{ratio}` | {size.width} × {size.height} | {size.width // 2} × {size.height // 2} |" in page  # noqa: RUF001
    assert "| `seed` | integer | No | random | 0–4294967295 |" in page  # noqa: RUF001


async def test_links_between_pages_lead_somewhere(server: Server) -> None:
    found: dict[str, str] = {}
    for path in await _all_pages(server):
        page = (await server.client.get(path.removesuffix(".md"))).text
        found |= dict.fromkeys(re.findall(r'href="(/docs/[^"#]+)', page), path)
    links = {link: path for link, path in found.items() if "/decisions/" not in link and not Path(link).suffix}
    assert links
    for link, path in links.items():
        assert (await server.client.get(link)).status_code == 200, f"{path} -> {link}"


@pytest.mark.parametrize("path", ["/docs/nothing", "/docs/pictures/nothing.png", "/docs/nothing.md"])
async def test_a_page_that_is_not_there_is_not_found(server: Server, path: str) -> None:
    assert (await server.client.get(path)).status_code == 404


async def test_a_search_finds_sections_and_leads_to_their_headings(server: Server) -> None:
    page = (await server.client.get("/docs/search", params={"q": "lora_scale"})).text
    assert 'href="/docs/' in page
    links = re.findall(r'<li>\s*<a href="(/docs/[^"#]+)#([^"]+)">', page)
    assert links
    for path, anchor in links:
        assert f'id="{anchor}"' in (await server.client.get(path)).text, (path, anchor)
    assert "<mark>lora_scale</mark>" in page


@pytest.mark.parametrize(
    "query", ["", "zzzz-nothing", "<script>alert(1)</script>", "x" * 5000, "\0", "((((", "a " * 500]
)
async def test_any_query_is_answered(server: Server, query: str) -> None:
    answer = await server.client.get("/docs/search", params={"q": query})
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
