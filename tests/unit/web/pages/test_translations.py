import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import read_po

from page_texts import SCRIPTS, literals_of, translations_script
from schnell.web.pages.languages import TRANSLATIONS

FILES = sorted(TRANSLATIONS.glob("*.po"))
_PLACEHOLDER = re.compile(r"%\(\w+\)s|%%|\{\w+\}")
_TAG = re.compile(r"</?[a-z][^<>]*>")
#: What scripts hold that reads like a text and is none.
_NO_TEXTS = (
    # classes and selectors
    r"strip-item pending( drawn)?|button small( copy-code)?|several (beside|stacked)|question sheet",
    r"lora-picture waiting|td input|#\w+(-list)? (li|main)|(input|a\[href\]|\[type=)[^.]*",
    # keys, and what is dragged
    r"Enter|Escape|Delete|Arrow|Files",
    # a prompt, the API's words, a part of a link, and an error that is told in other words
    r"a red apple|(mirrored and )?turned by \d+ degrees|, lora_weights: .*|the stream ended early",
)


def catalog_of(file: bytes, code: str) -> Catalog:
    return read_po(BytesIO(file), locale=code)


def _forms_of(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def faults_of(message: Message) -> list[str]:
    """What is wrong with a translation."""
    english, shown = _forms_of(message.id), _forms_of(message.string)
    found = ["is missing"] if not all(shown) else []
    found += ["is fuzzy"] if message.fuzzy else []
    for number, text in enumerate(shown):
        # the number may be spelled out in the form for one
        wanted = [set(_PLACEHOLDER.findall(each)) for each in (english if number == 0 else english[-1:])]
        found += [] if set(_PLACEHOLDER.findall(text)) in wanted else [f"has other placeholders: {text}"]
        found += (
            [] if Counter(_TAG.findall(text)) == Counter(_TAG.findall(english[-1])) else [f"has other HTML: {text}"]
        )
        # it may stand in an attribute, and nothing of it is escaped
        found += [f"has a sign of HTML: {text}"] if re.search(r'["<>&]', _sendable(_TAG.sub("", text))) else []
    return found


def _sendable(text: str) -> str:
    return text.replace("<your-api-key>", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_text_is_translated_with_its_placeholders_and_its_html(path: Path) -> None:
    catalog = catalog_of(path.read_bytes(), path.stem)
    wrong = [(message.id, fault) for message in catalog if message.id for fault in faults_of(message)]
    assert len(catalog) > 500
    assert not wrong


@pytest.mark.parametrize(
    ("english", "shown", "fault"),
    [
        ("a %(name)s", "", "is missing"),
        ("a %(name)s", "ein %(nome)s", "placeholders"),
        ("a {name}", "ein", "placeholders"),
        ("<b>a</b>", "<i>ein</i>", "HTML"),
        ("a", 'ein "Apfel"', "sign of HTML"),
        (("one", "{count} many"), ("eins", "viele"), "placeholders"),
    ],
)
def test_a_translation_that_does_not_fit_is_found(english: Any, shown: Any, fault: str) -> None:
    assert any(fault in each for each in faults_of(Message(english, shown)))


def test_a_translation_that_nobody_has_confirmed_is_found() -> None:
    assert faults_of(Message("a", "ein", flags=["fuzzy"])) == ["is fuzzy"]


def test_the_files_hold_the_texts_that_pages_have_today() -> None:
    script = translations_script()
    texts = script["extract"]()
    for path in FILES:
        assert path.read_bytes() == script["update"](path.stem, texts), f"{path.name} is old: run make texts"


def test_every_text_of_a_script_is_a_literal_that_the_catalogue_can_hold() -> None:
    call = translations_script()["SCRIPT_CALL"]
    for path in SCRIPTS.glob("*.js"):
        source = path.read_text("utf-8")
        # `t` and `n` themselves stand in texts.js
        called = len(re.findall(r"(?<![\w.$])[tn]\((?!english|one)", source))
        assert called == len(call.findall(source)), path.name


def prose_in(source: str) -> list[str]:
    """The strings of a script that read like texts, apart from those that are translated."""
    without = translations_script()["SCRIPT_CALL"].sub("t(", source)
    found = (each for each in literals_of(without) if re.search(r"^[A-Z][a-z]+( |$|[.…?!])|[a-z,] [a-z]", each))
    return [each for each in found if not any(re.fullmatch(known, each) for known in _NO_TEXTS)]


def test_scripts_show_no_text_that_is_not_translated() -> None:
    # snippets are code in other languages, and names of clients
    paths = [path for path in SCRIPTS.glob("*.js") if path.name != "snippets.js"]
    found = {path.name: prose for path in paths if (prose := prose_in(path.read_text("utf-8")))}
    assert found == {}


def test_a_text_in_a_script_that_is_not_translated_is_found() -> None:
    assert prose_in('say("Copied");\nsay(t("Saved"));\n// "Not a text"\n') == ["Copied"]
    assert prose_in("say(`You have ${count} pictures`)") == ["You have 0 pictures"]
