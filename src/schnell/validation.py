"""What pydantic finds wrong with a value, in the words that all our errors have: what must be, and no patterns.

The words never repeat the value: it may be a password or a token.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler

from schnell.errors import NO_NUL

_WORDS: Final = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "date_from_datetime_parsing": "must be a day such as 2026-01-31",
    "date_parsing": "must be a day such as 2026-01-31",
    "dict_type": "must be a JSON object",
    "extra_forbidden": "is not known here: leave it out",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_attributes_type": "must be a JSON object, sent with Content-Type: application/json",
    "model_type": "must be a JSON object",
    "string_type": "must be text",
    "string_unicode": "must be text in UTF-8",
    "uuid_parsing": "must be an id such as 6f1c1a52-5a3e-4a53-9a05-2b0f3a7c1d11",
    "uuid_type": "must be an id such as 6f1c1a52-5a3e-4a53-9a05-2b0f3a7c1d11",
}
_WITH_BOUNDS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "enum": lambda bounds: f"must be {bounds['expected']}",
    "greater_than": lambda bounds: f"must be more than {bounds['gt']}",
    "greater_than_equal": lambda bounds: f"must be at least {bounds['ge']}",
    "less_than": lambda bounds: f"must be less than {bounds['lt']}",
    "less_than_equal": lambda bounds: f"must be at most {bounds['le']}",
    "literal_error": lambda bounds: f"must be {bounds['expected']}",
    "multiple_of": lambda bounds: f"must be a multiple of {bounds['multiple_of']}",
    "string_too_long": lambda bounds: f"must have at most {_count(bounds['max_length'], 'character')}",
    "string_too_short": lambda bounds: f"must have at least {_count(bounds['min_length'], 'character')}",
    "too_long": lambda bounds: f"must have at most {_count(bounds['max_length'], 'entry', 'entries')}",
    "too_short": lambda bounds: f"must have at least {_count(bounds['min_length'], 'entry', 'entries')}",
}


def explain(found: Mapping[str, Any]) -> str:
    """What must be, from one of the errors of a `ValidationError`."""
    kind = str(found["type"])
    if kind == "string_pattern_mismatch" and "\0" in str(found.get("input", "")):
        return NO_NUL
    if (describe := _WITH_BOUNDS.get(kind)) is not None:
        return describe(found["ctx"])
    return _WORDS.get(kind) or str(found["msg"]).removeprefix("Value error, ")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


@dataclass(frozen=True, slots=True)
class Like:
    """In an `Annotated` text: the pattern of the whole of it, which the JSON schema shows, and what to say if not.

    It comes after the text's bounds of length: how long a pattern takes may depend on that.
    """

    pattern: str
    advice: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """The text's own schema, and then the pattern."""
        return AfterValidator(self._check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The text's own JSON schema with the pattern."""
        return handler(schema) | {"pattern": f"^{self.pattern}$"}

    def _check(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:
            raise ValueError(NO_NUL if "\0" in text else self.advice)
        return text
