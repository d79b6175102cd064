from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

import schnell.settings
import schnell.web
from schnell.errors import NO_NUL
from schnell.validation import Like, explain


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, StringConstraints(min_length=2, max_length=5), Like("[a-z]+", "must be small letters")] = "ab"
    count: Annotated[int, Field(ge=1, le=9, multiple_of=2)] = 2
    share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5
    kind: Literal["red", "blue"] = "red"
    day: date = date(2026, 1, 31)
    owner: UUID = UUID(int=0)
    tags: Annotated[list[str], Field(min_length=1, max_length=2)] = ["a"]
    on: bool = True
    inner: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "ABC", "must be small letters"),
        ("name", "ab\n", "must be small letters"),
        ("name", "a\0", NO_NUL),
        ("name", "a", "must have at least 2 characters"),
        ("name", "abcdef", "must have at most 5 characters"),
        ("name", 1, "must be text"),
        ("count", 0, "must be at least 1"),
        ("count", 10, "must be at most 9"),
        ("count", 3, "must be a multiple of 2"),
        ("count", "x", "must be a whole number"),
        ("count", 2.5, "must be a whole number"),
        ("share", 0, "must be more than 0.0"),
        ("share", 1, "must be less than 1.0"),
        ("share", "x", "must be a number"),
        ("share", float("nan"), "must be a finite number"),
        ("kind", "green", "must be 'red' or 'blue'"),
        ("day", "soon", "must be a day such as 2026-01-31"),
        ("owner", "nobody", "must be an id such as 6f1c1a52-5a3e-4a53-9a05-2b0f3a7c1d11"),
        ("tags", [], "must have at least 1 entry"),
        ("tags", ["a", "b", "c"], "must have at most 2 entries"),
        ("tags", "a", "must be a list"),
        ("on", "perhaps", "must be true or false"),
        ("inner", 1, "must be a JSON object"),
        ("unheard", 1, "is not known here: leave it out"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(field: str, value: object, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Example.model_validate({field: value})
    assert [explain(each) for each in caught.value.errors()] == [words]


def test_the_json_schema_shows_pattern_and_bounds() -> None:
    shown = Example.model_json_schema()["properties"]["name"]
    assert (shown["pattern"], shown["minLength"], shown["maxLength"]) == ("^[a-z]+$", 2, 5)


def test_a_text_that_is_too_long_is_not_matched_against_a_pattern() -> None:
    # quadratic: a minute for these, if it were
    slow = TypeAdapter(Annotated[str, StringConstraints(max_length=100), Like("a*a*b", "must end in b")])
    with pytest.raises(ValidationError, match="at most 100"):
        slow.validate_python("a" * 300_000)


def test_no_request_and_no_setting_is_checked_by_a_pattern_without_words() -> None:
    files = [*Path(schnell.web.__file__).parent.rglob("*.py"), Path(schnell.settings.__file__)]
    # the schema of a feature's body is written by hand and checks nothing
    assert [file for file in files if "pattern=" in file.read_text() and file.stem != "feature_schema"] == []
