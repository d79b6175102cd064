"""The languages of the pages: their texts, which of them a visitor reads, and how numbers and times are written in it.

English stands in templates and scripts and is each text's key; every other language is a file in `translations`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final

from babel import Locale
from babel.core import negotiate_locale
from babel.dates import format_skeleton, format_timedelta
from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal
from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from schnell.errors import FieldProblem, InvalidFieldError
from schnell.web.auth import is_secure
from schnell.web.native.account import own_path

router = APIRouter()
TRANSLATIONS: Final = Path(__file__).with_name("translations")
COOKIE: Final = "schnell_language"
_COOKIE_SECONDS: Final = 365 * 86_400
_MINUTE: Final = 60
#: A rule for whole numbers tells its categories apart well below this.
_SAMPLES: Final = range(200)
#: A script's texts by their English; where the number decides, by the number's category (`one`, `few`, `other`).
ScriptTexts = Mapping[str, str | Mapping[str, str]]
_SCRIPT: Final = re.compile(r"'([\w/-]+\.js)'")
_TEMPLATE: Final = re.compile(r'\{% (?:extends|include) "([\w.]+)"')
_IMPORT: Final = re.compile(r'(?:from|import) "\./([\w/-]+\.js)"')


@dataclass(frozen=True, slots=True, eq=False)
class Language:
    """One language. `name` is what it calls itself, `scripts` holds the texts of each script by the script's name."""

    code: str
    name: str
    locale: Locale
    texts: NullTranslations
    scripts: Mapping[str, ScriptTexts]

    def number(self, number: float) -> str:
        """A number with this language's separators."""
        return format_decimal(number, locale=self.locale)

    def size(self, count: float) -> str:
        """A number of bytes in binary units, such as `1.2 GiB`."""
        if count < 1024:
            return self.texts.ngettext("%(num)s byte", "%(num)s bytes", int(count)) % {"num": self.number(int(count))}
        for unit in ("KiB", "MiB", "GiB", "TiB"):
            count /= 1024
            if count < 1024 or unit == "TiB":
                break
        return f"{format_decimal(round(count, 1), '#,##0.0', locale=self.locale)} {unit}"

    def day(self, day: date) -> str:
        """A day of this year, such as `28 Nov`."""
        return format_skeleton("MMMd", day, locale=self.locale)

    def ago(self, moment: datetime) -> str:
        """How long ago something was, in the largest unit that fits."""
        passed = datetime.now(UTC) - moment
        if passed.total_seconds() < _MINUTE:
            return self.texts.gettext("just now")
        return format_timedelta(-passed, threshold=1, add_direction=True, locale=self.locale)

    def named(self, value: str) -> str:
        """What a value of a small set is called, such as a role; any other value as it is."""
        return self.texts.gettext(_NAMES[value]) if value in _NAMES else value


def mark(text: str) -> str:
    """`text` itself. It marks a text that is translated where it is shown, for the catalogue to hold it."""
    return text


#: Values of databases and lists as people read them.
_NAMES: Final = {
    "ADMIN": mark("admin"),
    "MEMBER": mark("member"),
    "ACTIVE": mark("active"),
    "INACTIVE": mark("inactive"),
    "none": mark("never"),
    "day": mark("every day"),
    "month": mark("every month"),
    # stages of a generation
    "queued": mark("queued"),
    "fetch": mark("fetching LoRAs"),
    "text": mark("reading the prompt"),
    "denoise": mark("drawing"),
    "decode": mark("decoding"),
    # by what an administrator came
    "key": mark("key"),
    "session": mark("session"),
    "command line": mark("command line"),
    "server": mark("server"),
    # what a picture carries
    "marked": mark("marked"),
    "signed": mark("signed"),
    "marked and signed": mark("marked and signed"),
    # sections of the documentation
    "Start": mark("Start"),
    "Reference": mark("Reference"),
    "Engine": mark("Engine"),
    "Operation": mark("Operation"),
    "Inside": mark("Inside"),
}


class Languages:
    """The languages that the pages can be read in; the first is for those who ask for none of them."""

    def __init__(self, known: Sequence[Language]) -> None:
        # tags of languages are the same in any case
        self._by_code = {language.code.lower(): language for language in known}
        self._first = known[0]

    def __iter__(self) -> Iterator[Language]:
        return iter(self._by_code.values())

    def find(self, code: str) -> Language | None:
        """The language of a code, if it is known."""
        return self._by_code.get(code.lower())

    def choose(self, chosen: str, accepted: str) -> Language:
        """The visitor's choice, else the best of an `Accept-Language` header, by its qualities."""
        if found := self.find(chosen):
            return found
        header = parse_accept_header(accepted, LanguageAccept)
        wanted = [tag for tag, quality in header if quality > 0]
        best = negotiate_locale(wanted, self._by_code, sep="-")
        return self._by_code[best.lower()] if best else self._first


def language_of(request: Request) -> Language:
    """The language of the pages for a request."""
    known: Languages = request.app.state.site.languages
    return known.choose(request.cookies.get(COOKIE, ""), request.headers.get("accept-language", ""))


@router.post("/language")
async def choose_language(
    request: Request,
    language: Annotated[str, Form(max_length=35)],
    next: Annotated[str, Form(max_length=4000)] = "/",  # noqa: A002 - as in the sign-in page's address
) -> Response:
    """Keep the visitor's choice in a cookie, and go back to the page where it was made."""
    known: Languages = request.app.state.site.languages
    if known.find(language) is None:
        codes = ", ".join(each.code for each in known)
        raise InvalidFieldError(FieldProblem("language", f"must be one of {codes}"))
    answer = RedirectResponse(own_path(next), 303)
    answer.set_cookie(
        COOKIE, language, max_age=_COOKIE_SECONDS, httponly=True, samesite="lax", secure=is_secure(request)
    )
    return answer


def load_languages() -> Languages:
    """English, and every language that the package has a file of texts for."""
    english = Language("en", "English", Locale("en", "GB"), NullTranslations(), {})
    files = sorted(TRANSLATIONS.glob("*.po"))
    return Languages([english, *(read_language(path.stem, path.read_bytes()) for path in files)])


def read_language(code: str, file: bytes) -> Language:
    """A language of a gettext file (.po). What is missing or fuzzy in it stays English."""
    locale = Locale.parse(code, sep="-")
    catalog = read_po(BytesIO(file), locale=locale)
    compiled = BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    texts = GNUTranslations(compiled)
    return Language(code, locale.get_display_name() or code, locale, texts, _script_texts(catalog, locale, texts))


def _script_texts(catalog: Catalog, locale: Locale, texts: GNUTranslations) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for message in catalog:
        if not message.id or not message.string or message.fuzzy:
            continue
        for place in (path for path, _ in message.locations if path.endswith(".js")):
            english = message.id[0] if message.pluralizable else message.id
            found.setdefault(place.rpartition("/static/")[2], {})[str(english)] = _forms(message, locale, texts)
    return found


def _forms(message: Message, locale: Locale, texts: GNUTranslations) -> str | dict[str, str]:
    """A text, or that of each category of numbers: browsers know a number's category, gettext's files only a rule."""
    if not message.pluralizable:
        return str(message.string)
    one, other = message.id[0], message.id[1]
    category: Callable[[int], str] = locale.plural_form
    return {category(number): texts.ngettext(one, other, number) for number in reversed(_SAMPLES)}


def scripts_of(template: str, read_template: Callable[[str], str], scripts: Mapping[str, str]) -> set[str]:
    """The scripts that pages of a template load, with those that they import. `scripts` holds the text of each."""
    left = _named_in(template, read_template)
    found: set[str] = set()
    while left:
        name = left.pop()
        found.add(name)
        left |= set(_IMPORT.findall(scripts[name])) - found
    return found


def _named_in(template: str, read_template: Callable[[str], str]) -> set[str]:
    source = read_template(template)
    named = set(_SCRIPT.findall(source))
    return named.union(*(_named_in(other, read_template) for other in _TEMPLATE.findall(source)))
