"""The documentation: Markdown files, read once, rendered to HTML without inline styles.

The pages' content security policy forbids inline styles and scripts.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from PIL import Image

import schnell

_DRAWING_SIZE: Final = re.compile(r'<svg [^>]*width="([0-9]+)" height="([0-9]+)"')
#: The slugs of the pages in reading order, by section. Pages without a file are left out.
CONTENTS: Final = (
    ("Start", ("index", "quickstart", "tips", "use-cases")),
    ("Reference", ("flux-schnell-lora", "api", "errors", "clients", "command-line")),
    ("LoRAs", ("loras", "lora-files", "train-a-lora")),
    ("Engine", ("speed", "memory", "engine", "embedded-model", "benchmarks")),
    ("Operation", ("self-hosting", "members", "models", "settings", "scale-out", "safety", "provenance", "licences")),
    ("Inside", ("architecture", "decisions")),
)
_ALIGNMENT: Final = re.compile(r"text-align:(left|right|center)")
_ELSEWHERE: Final = re.compile(r"[a-z]+:|[/#]")
_GENERATED: Final = re.compile(r"<!-- generated: ([a-z-]+) -->")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 2 or 3, and the anchor that links to it."""

    level: int
    text: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Document:
    """One page as Markdown. `slug` is its path below the folder, without the ending; `summary` its first sentence."""

    slug: str
    section: str
    title: str
    summary: str
    text: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page's HTML and its headings."""

    html: str
    headings: tuple[Heading, ...]


def find_documents() -> Path:
    """The folder of the documentation: inside the installed package, or in the checkout that this runs from."""
    package = Path(schnell.__file__).parent
    installed = package / "docs"
    return installed if installed.is_dir() else package.parents[1] / "docs"


def load_documents(folder: Path) -> dict[str, Document]:
    """The pages of `CONTENTS` that are in `folder`, by slug, in reading order."""
    found = {}
    for section, slugs in CONTENTS:
        for slug in slugs:
            for path in (folder / f"{slug}.md", *sorted((folder / slug).glob("*.md"))):
                if path.is_file():
                    name = path.relative_to(folder).with_suffix("").as_posix()
                    found[name] = _read(name, section, path.read_text(encoding="utf-8"))
    return found


def fill_in(text: str, generated: Mapping[str, str]) -> str:
    """`text` with each `<!-- generated: NAME -->` replaced.

    Raises:
        KeyError: nothing generates NAME.
    """
    return _GENERATED.sub(lambda match: generated[match[1]], text)


def render_markdown(text: str, slug: str = "") -> Rendered:
    """Markdown of the page `slug` as HTML: headings with anchors, links between pages, no inline styles, no raw HTML.

    Relative links and pictures are resolved from the page's own folder.
    """
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
    tokens = parser.parse(text)
    headings = _anchor_headings(tokens)
    _demote_empty_headers(tokens)
    for token in _with_children(tokens):
        _rewrite_attributes(token, posixpath.dirname(slug))
    return Rendered(parser.renderer.render(tokens, parser.options, {}), headings)


class _Renderer(RendererHTML):
    """Puts tables in a frame that scrolls by itself, and code blocks in one that gets a copy button."""

    def table_open(self, *_: Any) -> str:
        return '<div class="table-frame" tabindex="0" role="group" aria-label="Table"><table>\n'

    def table_close(self, *_: Any) -> str:
        return "</table></div>\n"

    def fence(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        code = escape(tokens[idx].content.rstrip("\n"))
        language = escape(tokens[idx].info.strip().partition(" ")[0])
        return (
            f'<div class="code-frame" data-copyable data-language="{language}">'
            f'<pre tabindex="0"><code>{code}</code></pre></div>\n'
        )

    def code_block(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return self.fence(tokens, idx)


def _read(slug: str, section: str, text: str) -> Document:
    first, _, rest = text.lstrip().partition("\n")
    summary = next((line for line in rest.split("\n\n") if line.strip()[:1].isalnum()), "")
    summary = re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", " ".join(summary.split()))
    return Document(slug, section, first.lstrip("# ").replace("`", ""), summary.split(". ")[0].rstrip(".") + ".", text)


def anchors_of(headings: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The anchor of each heading of a page, in order: its words in lower case, with a number where they repeat."""
    used = set(taken)
    anchors: list[str] = []
    for text in headings:
        anchor = base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        count = 1
        while anchor in used:
            count += 1
            anchor = f"{base}-{count}"
        used.add(anchor)
        anchors.append(anchor)
    return anchors


def _anchor_headings(tokens: Sequence[Token]) -> tuple[Heading, ...]:
    opened = [(token, inline) for token, inline in pairwise(tokens) if token.type == "heading_open"]
    texts = ["".join(child.content for child in inline.children or ()) for _, inline in opened]
    headings: list[Heading] = []
    for (token, _), text, anchor in zip(opened, texts, anchors_of(texts), strict=True):
        token.attrSet("id", anchor)
        if token.tag in {"h2", "h3"}:
            headings.append(Heading(int(token.tag[1]), text, anchor))
    return tuple(headings)


def _demote_empty_headers(tokens: Sequence[Token]) -> None:
    """Make header cells without text ordinary cells: screen readers announce an empty header."""
    for opened, inline, closed in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if opened.type == "th_open" and not inline.content:
            opened.tag = closed.tag = "td"


def _with_children(tokens: Sequence[Token]) -> list[Token]:
    return [each for token in tokens for each in (token, *(token.children or ()))]


def _rewrite_attributes(token: Token, folder: str) -> None:
    # markdown-it aligns table cells by an inline style, which the content security policy forbids
    if match := _ALIGNMENT.fullmatch(str(token.attrs.pop("style", ""))):
        token.attrSet("class", f"align-{match[1]}")
    for name in ("href", "src"):
        target = token.attrGet(name)
        if isinstance(target, str) and not _ELSEWHERE.match(target):
            token.attrSet(name, _address(target, folder))
            if name == "src":
                token.attrSet("loading", "lazy")
                _set_size(token, find_documents() / folder / target)


def _set_size(token: Token, path: Path) -> None:
    """Set the size of a picture, so that the text does not move when the picture has loaded."""
    if path.suffix == ".svg":
        # drawings say their size themselves, in pixels
        size = _DRAWING_SIZE.search(path.read_text("utf-8")) if path.is_file() else None
        if size is not None:
            token.attrSet("width", int(size[1]))
            token.attrSet("height", int(size[2]))
    elif path.is_file():
        with Image.open(path) as picture:
            token.attrSet("width", picture.width)
            token.attrSet("height", picture.height)


def _address(target: str, folder: str) -> str:
    name, mark, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join("/docs", folder, name))
    return f"{path.removesuffix('.md')}{mark}{anchor}"
