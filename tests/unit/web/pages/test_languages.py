from datetime import UTC, date, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from page_texts import PSEUDO, pseudo_languages
from schnell.accounts.audit import Via
from schnell.accounts.identity import BudgetWindow, Role, Status
from schnell.spec.job import Stage
from schnell.web.pages.documents import CONTENTS
from schnell.web.pages.languages import load_languages, read_language, scripts_of

LANGUAGES = load_languages()
GERMAN, ENGLISH = LANGUAGES.find("de"), LANGUAGES.find("en")
POLISH = """
msgid ""
msgstr ""
"Content-Type: text/plain; charset=utf-8\\n"
"Plural-Forms: nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);\\n"

#: web/pages/static/gallery.js
msgid "One picture added"
msgid_plural "{count} pictures added"
msgstr[0] "Dodano obraz"
msgstr[1] "Dodano {count} obrazy"
msgstr[2] "Dodano {count} obrazów"

#: web/pages/static/gallery.js
#, fuzzy
msgid "Undo"
msgstr "Cofnij"
"""


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "en"),
        ("de", "de"),
        ("DE", "de"),
        ("de-AT", "de"),
        # a variant that is not known stands for its language, before what is wanted less
        ("de-AT, en;q=0.9", "de"),
        ("en-GB, de;q=0.9", "en"),
        ("fr, de;q=0.3, en;q=0.2", "de"),
        ("en;q=0.2, de;q=0.3", "de"),
        ("de;q=0, en;q=0.1", "en"),
        ("fr, es;q=0.5", "en"),
        ("*", "en"),
        ("de;q=broken", "en"),
    ],
)
def test_the_best_language_of_a_header_is_chosen_by_its_qualities(header: str, code: str) -> None:
    assert LANGUAGES.choose("", header).code == code


def test_a_choice_goes_before_the_header() -> None:
    assert LANGUAGES.choose("de", "en").code == "de"
    assert LANGUAGES.choose("fr", "de").code == "de"


@given(st.text(), st.text())
def test_no_header_and_no_cookie_is_too_odd_for_a_language(cookie: str, header: str) -> None:
    assert LANGUAGES.choose(cookie, header) in list(LANGUAGES)


def test_numbers_and_times_are_written_as_in_the_language() -> None:
    assert GERMAN is not None
    assert ENGLISH is not None
    before = datetime.now(UTC) - timedelta(hours=3)
    assert [each.number(1_234_567) for each in (ENGLISH, GERMAN)] == ["1,234,567", "1.234.567"]
    assert [each.day(date(2026, 3, 5)) for each in (ENGLISH, GERMAN)] == ["5 Mar", "5. März"]
    assert [each.ago(before) for each in (ENGLISH, GERMAN)] == ["3 hours ago", "vor 3 Stunden"]
    assert [each.ago(datetime.now(UTC)) for each in (ENGLISH, GERMAN)] == ["just now", "gerade eben"]


@pytest.mark.parametrize(
    ("count", "size"),
    [(0, "0 Bytes"), (1, "1 Byte"), (1536, "1,5 KiB"), (5 * 2**20, "5,0 MiB"), (3 * 2**50, "3.072,0 TiB")],
)
def test_sizes_are_in_the_largest_unit_that_fits(count: int, size: str) -> None:
    assert GERMAN is not None
    assert GERMAN.size(count) == size


def test_scripts_get_a_form_for_each_category_of_numbers_that_browsers_know() -> None:
    texts = read_language("pl", POLISH.encode()).scripts["gallery.js"]
    assert texts["One picture added"] == {
        "one": "Dodano obraz",
        "few": "Dodano {count} obrazy",
        "many": "Dodano {count} obrazów",
    }


def test_what_nobody_has_confirmed_stays_english() -> None:
    language = read_language("pl", POLISH.encode())
    assert "Undo" not in language.scripts["gallery.js"]
    assert language.texts.gettext("Undo") == "Undo"


def test_a_language_calls_itself_by_its_own_name() -> None:
    assert [each.name for each in LANGUAGES] == ["English", "Deutsch"]


def test_a_page_names_its_scripts_those_of_its_parents_and_what_they_import() -> None:
    templates = {"base": "{{ static('a.js') }}", "page": "{% extends \"base\" %}{{ static('b.js') }}"}
    scripts = {"a.js": 'import { t } from "./c.js";', "b.js": "", "c.js": 'import "./a.js";', "d.js": ""}
    assert scripts_of("page", templates.__getitem__, scripts) == {"a.js", "b.js", "c.js"}


def test_the_languages_of_the_tests_hold_a_bracketed_one() -> None:
    pseudo = pseudo_languages().find(PSEUDO)
    assert pseudo is not None
    assert pseudo.texts.gettext("Undo") == "⟦Undo··⟧"


_SMALL_SETS = (Role, Status, BudgetWindow, Via, Stage)


@pytest.mark.parametrize(
    "value", [*(value for each in _SMALL_SETS for value in get_args(each)), *(section for section, _ in CONTENTS)]
)
def test_values_of_small_sets_have_a_name_in_the_catalogue(value: str) -> None:
    pseudo = pseudo_languages().find(PSEUDO)
    assert pseudo is not None
    # LoRAs are LoRAs everywhere
    assert pseudo.named(value).startswith("⟦") or value == "LoRAs"


def test_a_value_without_a_name_stays_as_it_is() -> None:
    assert GERMAN is not None
    assert GERMAN.named("ADMIN") == "Admin"
    assert GERMAN.named("something else") == "something else"
