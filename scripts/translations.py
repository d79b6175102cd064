"""Bring the texts of the pages into every language's file: `python scripts/translations.py`, after a change of texts.

With the code of a new language (`python scripts/translations.py fr`), it begins that language's file.
"""

import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final

from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

SOURCE: Final = Path(__file__).parent.parent / "src" / "schnell"
TRANSLATIONS: Final = SOURCE / "web" / "pages" / "translations"
_TEXT: Final = r'"(?:[^"\\\n]|\\.)*"'
#: A call of `t` or `n` in a script, and its one or two texts, which are always literals in double quotes.
SCRIPT_CALL: Final = re.compile(rf"(?<![\w.$])([tn])\(\s*({_TEXT})(?:,\s*({_TEXT}))?")
_OPTIONS: Final = {"web/pages/templates/**.html": {"silent": "false", "trimmed": "true", "newstyle_gettext": "true"}}
#: `mark` marks texts that are translated where they are shown.
_KEYWORDS: Final = {"_": None, "gettext": None, "ngettext": (1, 2), "pgettext": ((1, "c"), 2), "mark": None}
_Found = tuple[int, str, Any, list[str]]


def extract_script(file: IO[bytes], *_: Any, **__: Any) -> Iterator[_Found]:
    """The texts of a script, where `t` and `n` are gettext and ngettext.

    Babel's own method misses calls in another's arguments and in template literals.
    """
    for call in SCRIPT_CALL.finditer(file.read().decode()):
        one, other = json.loads(call[2]), call[3] and json.loads(call[3])
        yield (1, "ngettext", (one, other), []) if call[1] == "n" else (1, "gettext", one, [])


_METHODS: Final = [
    ("web/pages/static/vendor/**", "ignore"),
    ("web/pages/templates/**.html", "jinja2"),
    ("web/pages/static/**.js", extract_script),
    ("web/pages/**.py", "python"),
]


def extract() -> Catalog:
    """Every text of templates, scripts and Python code, with the files that it is in."""
    found = Catalog(project="schnell", charset="utf-8")
    for path, _, text, comments, context in extract_from_dir(SOURCE, _METHODS, _OPTIONS, _KEYWORDS):
        found.add(text, locations=[(path, 1)], auto_comments=comments, context=context)
    return found


def update(code: str, template: Catalog) -> bytes:
    """A language's file with the texts of today: new ones empty, changed ones fuzzy, those that are gone left out."""
    path = TRANSLATIONS / f"{code}.po"
    locale = Locale.parse(code, sep="-")
    catalog = (
        read_po(BytesIO(path.read_bytes()), locale=locale) if path.exists() else Catalog(locale, project="schnell")
    )
    catalog.update(template, update_creation_date=False)
    catalog.obsolete.clear()
    if not path.exists():
        catalog.creation_date = datetime.now(UTC)
    written = BytesIO()
    # without lines: a text's file is what the pages read, and lines would change with every edit
    write_po(written, catalog, width=120, sort_by_file=True, include_lineno=False, omit_header=False)
    return written.getvalue()


if __name__ == "__main__":
    texts = extract()
    for each in {*sys.argv[1:], *(path.stem for path in TRANSLATIONS.glob("*.po"))}:
        (TRANSLATIONS / f"{each}.po").write_bytes(update(each, texts))
