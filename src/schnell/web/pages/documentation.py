"""The documentation as pages, as Markdown, and as an index for machines; and the page that checks pictures."""

from pathlib import PurePosixPath
from typing import Final

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response

from schnell.errors import NotFoundError
from schnell.web.pages.document_search import LONGEST_QUERY, search_documents
from schnell.web.pages.documents import CONTENTS, Document, fill_in, find_documents, render_markdown
from schnell.web.pages.schema_tables import generate_tables
from schnell.web.pages.site import find_caller, page, site_of
from schnell.web.services import services_of

router = APIRouter()
_PICTURES: Final = {".webp", ".png", ".jpg", ".svg"}
_MARKDOWN: Final = "text/markdown; charset=utf-8"


@router.get("/docs")
async def index(request: Request) -> Response:
    """The first page of the documentation."""
    return await _show(request, "index")


@router.get("/docs/openapi")
async def openapi_viewer(request: Request) -> Response:
    """Swagger UI over `/openapi.json`."""
    return page(request, "openapi.html", await find_caller(request), contents=_contents(request), document=None)


@router.get("/verify")
async def verify(request: Request) -> Response:
    """A place to drop a picture on, and what was found in it. As the documentation, it needs no sign-in."""
    services = services_of(request)
    most = services.config.body_limits.get("/api/verify", 0)
    signs = services.signer is not None
    return page(request, "verify.html", await find_caller(request), most_bytes=most, signs=signs)


@router.get("/docs/search")
async def search(request: Request, q: str = "") -> Response:
    """The sections of the documentation that hold every word of `q`."""
    query = "".join(filter(str.isprintable, q))[:LONGEST_QUERY].strip()
    tables = generate_tables(request.app)
    texts = (
        (each, fill_in(each.text, tables))
        for each in site_of(request).documents.values()
        if not each.slug.startswith("decisions/")
    )
    return page(
        request,
        "search.html",
        await find_caller(request),
        contents=_contents(request),
        document=None,
        query=query,
        findings=search_documents(texts, query),
    )


@router.get("/docs/pictures/{name}")
async def picture(name: str) -> Response:
    """A picture that a page shows."""
    # the last part of the name only: a path must not lead out of the folder
    path = find_documents() / "pictures" / PurePosixPath(name).name
    if path.suffix not in _PICTURES or not path.is_file():
        raise NotFoundError("the documentation has no such picture")
    return FileResponse(path, headers={"Cache-Control": "public, max-age=3600"})


@router.get("/docs/{slug:path}.md")
async def markdown(request: Request, slug: str) -> Response:
    """A page as Markdown, with its generated tables filled in."""
    return PlainTextResponse(_text(request, _find(request, slug)), media_type=_MARKDOWN)


@router.get("/docs/{slug:path}")
async def document(request: Request, slug: str) -> Response:
    """One page as HTML."""
    return await _show(request, slug)


@router.get("/llms.txt")
async def llms(request: Request) -> Response:
    """The index of the documentation for language models (https://llmstxt.org)."""
    url = services_of(request).config.public_url
    lines = ["# schnell", "", "> A self-hosted FLUX.1 [schnell] + LoRA image service.", ""]
    for section, documents in _contents(request):
        lines += [f"## {section}", ""]
        lines += [f"- [{each.title}]({url}/docs/{each.slug}.md): {each.summary}" for each in documents]
        lines.append("")
    lines += ["## Machine-readable", "", f"- [OpenAPI]({url}/openapi.json): every route, body and answer."]
    return PlainTextResponse("\n".join(lines) + "\n", media_type=_MARKDOWN)


async def _show(request: Request, slug: str) -> Response:
    found = _find(request, slug)
    return page(
        request,
        "document.html",
        await find_caller(request),
        contents=_contents(request),
        document=found,
        rendered=render_markdown(_text(request, found), found.slug),
        neighbours=_neighbours(request, found),
    )


def _find(request: Request, slug: str) -> Document:
    found = site_of(request).documents.get(slug)
    if found is None:
        # not in the domain's words, which are English: the page that browsers get is in their language
        raise HTTPException(404)
    return found


def _text(request: Request, found: Document) -> str:
    # the examples name the default address; with this server's own they can be copied as they are
    url = services_of(request).config.public_url
    return fill_in(found.text, generate_tables(request.app)).replace("http://127.0.0.1:8000", url)


def _contents(request: Request) -> list[tuple[str, list[Document]]]:
    documents = site_of(request).documents.values()
    sections = [
        (section, [each for each in documents if each.section == section and not each.slug.startswith("decisions/")])
        for section, _ in CONTENTS
    ]
    return [(section, pages) for section, pages in sections if pages]


def _neighbours(request: Request, found: Document) -> tuple[Document | None, Document | None]:
    documents = list(site_of(request).documents.values())
    place = documents.index(found)
    after = documents[place + 1] if place + 1 < len(documents) else None
    return (documents[place - 1] if place else None), after
