"""Finding words in the documentation: its sections, ranked by where and how often the words stand in them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from schnell.web.pages.documents import Document, anchors_of

_MOST_RESULTS: Final = 20
_MOST_WORDS: Final = 8
LONGEST_QUERY: Final = 200
#: Characters of the text around the first word that is found.
_EXCERPT: Final = 160
#: A word in a title counts as often as that in a text.
_IN_TITLE: Final = 20
_IN_HEADING: Final = 8
_WORD: Final = re.compile(r"[^\W_]+(?:[-_.][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Finding:
    """A section of a page that holds every word: its page, its heading and anchor, and the text around a word."""

    slug: str
    title: str
    heading: str
    anchor: str
    before: str
    word: str
    after: str


def search_documents(documents: Iterable[tuple[Document, str]], query: str) -> list[Finding]:
    """The best sections for a query, the best first. `documents` come with their texts as they are shown."""
    words = tuple(dict.fromkeys(word.casefold() for word in _WORD.findall(query[:LONGEST_QUERY])))[:_MOST_WORDS]
    if not words:
        return []
    ranked: list[tuple[int, Finding]] = []
    for document, text in documents:
        for heading, anchor, body in _sections(text):
            score = _score(words, document.title, heading, body)
            if score:
                ranked.append((score, _finding(document, heading, anchor, body, words[0])))
    ranked.sort(key=lambda each: -each[0])
    return [finding for _, finding in ranked[:_MOST_RESULTS]]


def _sections(text: str) -> Iterator[tuple[str, str, str]]:
    """Heading, anchor and plain text of each part of a page; the first part's heading and anchor are empty."""
    pieces = re.split(r"(?m)^#{2,3} +(.+)$", text)
    yield "", "", _plain(pieces[0].partition("\n")[2])
    headings = [re.sub(r"[`*]", "", each).strip() for each in pieces[1::2]]
    for heading, anchor, body in zip(headings, anchors_of(headings), pieces[2::2], strict=True):
        yield heading, anchor, _plain(body)


def _plain(markdown: str) -> str:
    without_links = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", markdown)
    without_marks = re.sub(r"(?m)^\|[-| :]+\|$|^```\w*$|<!--.*?-->|[`*]", "", without_links)
    return " ".join(without_marks.replace("|", " ").split())


def _score(words: Iterable[str], title: str, heading: str, body: str) -> int:
    """How well a section answers; 0 where one of the words stands in none of its parts."""
    parts = ((title.casefold(), _IN_TITLE), (heading.casefold(), _IN_HEADING), (body.casefold(), 1))
    scores = [sum(text.count(word) * weight for text, weight in parts) for word in words]
    # a page's title alone would list all of its sections
    in_section = any(word in text for word in words for text, _ in parts[1:])
    return sum(scores) if all(scores) and (in_section or not heading) else 0


def _finding(document: Document, heading: str, anchor: str, body: str, word: str) -> Finding:
    place = max(0, body.casefold().find(word))
    start = max(0, place - _EXCERPT // 2)
    if start:
        # from the next word on, unless there is none before what was found
        start = max(start, body.find(" ", start, place) + 1)
    end = place + len(word)
    return Finding(
        document.slug,
        document.title,
        heading,
        anchor,
        ("… " if start else "") + body[start:place],
        body[place:end],
        body[end : start + _EXCERPT] + (" …" if len(body) > start + _EXCERPT else ""),
    )
