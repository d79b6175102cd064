"""What people read on pages, found in HTML and scripts; and a language with every text of the catalogue in brackets."""

import re
import runpy
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from babel.messages.catalog import Catalog
from babel.messages.pofile import write_po

from schnell.web.pages.languages import Language, Languages, load_languages, read_language

ROOT: Final = Path(__file__).parents[1]
SCRIPTS: Final = ROOT / "src" / "schnell" / "web" / "pages" / "static"
#: Esperanto: a code that Babel knows and that nobody translates these pages into.
PSEUDO: Final = "eo"
_SHOWN: Final = {"aria-label", "placeholder", "title", "alt", "data-done", "data-ask"}
_SILENT: Final = {"script", "style", "code", "pre", "kbd", "textarea"}
_VOID: Final = {"meta", "link", "input", "img", "br", "hr", "path", "rect", "circle"}
_WORD: Final = re.compile(r"[^\W\d_]{2,}")
_BRACKETED: Final = re.compile(r"⟦[^⟦⟧]*⟧")
_COMMENT: Final = re.compile(r"/\*.*?\*/|^\s*//[^\n]*|(?<=[;,{}(])\s*//[^\n]*", re.DOTALL | re.MULTILINE)
#: Names, and examples that are the same in every language.
SAME_EVERYWHERE: Final = {
    *("schnell", "LoRA", "LoRAs", "API", "OpenAPI", "OpenID", "CSV", "Ada", "ada@example.org", "Apache-2.0"),
    *("schnell_", "mystyle", "llms.txt", "openapi.json", "POST", "webp", "jpg", "png"),
    *("Deutsch", "English", "DE", "EN"),
}


@cache
def translations_script() -> dict[str, Any]:
    """`scripts/translations.py`, as a module's names."""
    return runpy.run_path(str(ROOT / "scripts" / "translations.py"))


@cache
def pseudo_languages() -> Languages:
    """The languages, and one in which every text stands in brackets and is half as long again."""
    catalog = Catalog(PSEUDO, charset="utf-8")
    for message in translations_script()["extract"]():
        if message.id:
            texts = message.id if message.pluralizable else (message.id,)
            shown = tuple(_bracket(str(text)) for text in texts)
            catalog.add(
                message.id,
                shown if message.pluralizable else shown[0],
                locations=message.locations,
                context=message.context,
            )
    file = BytesIO()
    write_po(file, catalog)
    pseudo: Language = read_language(PSEUDO, file.getvalue())
    return Languages([*load_languages(), pseudo])


def _bracket(text: str) -> str:
    return f"⟦{text}{'·' * (len(text) // 2)}⟧"


def unbracketed(html: str, known: set[str]) -> list[str]:
    """The words of a page that are neither bracketed nor among `known`: they do not come from the catalogue."""
    found = []
    for text in texts_of(html):
        # brackets of a text may stand around another's, as in "Use of ⟦…⟧"
        rest = text
        while rest != (rest := _BRACKETED.sub(" ", rest)):
            pass
        for each in sorted(known | SAME_EVERYWHERE, key=len, reverse=True):
            rest = rest.replace(each, " ")
        if _WORD.search(rest):
            found.append(text)
    return found


class _Reader(HTMLParser):
    """Gathers what is shown: the text of each element, with that of the elements in it, and of some attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[tuple[str, bool]] = []
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        skipped = (bool(self._open) and self._open[-1][1]) or tag in _SILENT or values.get("lang") == "en"
        if tag not in _VOID:
            self._open.append((tag, skipped))
        if not skipped:
            self.found += [str(values[name]) for name in _SHOWN & values.keys() if values[name]]

    def handle_endtag(self, tag: str) -> None:
        self._finish()
        names = [name for name, _ in self._open]
        if tag in names:
            del self._open[len(names) - 1 - names[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        if not (self._open and self._open[-1][1]):
            self._text.append(data)
        # a text with elements in it has a bracket before them, and one after
        if "".join(self._text).count("⟦") == "".join(self._text).count("⟧"):
            self._finish()

    def close(self) -> None:
        super().close()
        self._finish()

    def _finish(self) -> None:
        text = " ".join("".join(self._text).split())
        if text.count("⟦") == text.count("⟧"):
            self._text.clear()
            if text:
                self.found.append(text)


def texts_of(html: str) -> list[str]:
    """What is read of a page: texts that are shown, and what screen readers say; not what is marked as English."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return [text for text in reader.found if _WORD.search(text)]


def literals_of(script: str) -> Iterator[str]:
    """The strings of a script, without its comments."""
    for literal in re.finditer(r'"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`', _COMMENT.sub("", script)):
        yield literal[1] if literal[1] is not None else _fill(literal[2])


def _fill(template: str) -> str:
    """A template literal with a number for each value, from the innermost braces outwards."""
    while template != (template := re.sub(r"\$?\{[^{}]*\}", "0", template)):
        pass
    return template
