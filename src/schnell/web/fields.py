"""Reading typed values from a JSON object: null counts as absent, 4.0 as a whole number.

Nothing is raised at the first wrong field: `Fields.check` reports all of them in one error.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request

from schnell.errors import (
    NO_NUL,
    ClientGoneError,
    FieldProblem,
    InvalidFieldError,
    MissingFieldError,
    UnreadableBodyError,
)

_Value = TypeVar("_Value")
_Number = TypeVar("_Number", int, float)
#: From here on, integers are not exact for clients that read JSON numbers as doubles.
_MAX_NUMBER: Final = 2**53


def whole_number(value: Any) -> Any:
    """4 for 4.0, which pydantic's strict mode would refuse as an int; every other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


async def read_json_object(request: Request, example: str) -> dict[str, Any]:
    """The request's body; `example` shows what this path takes to whoever sends something else.

    Raises:
        UnreadableBodyError: it is not a JSON object in UTF-8.
        BodyTooLargeError: it has more bytes than this path takes.
        ClientGoneError: the connection was closed before all of it arrived.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientGoneError from None
    try:
        # as `json.loads` reads bytes
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        value = _DECODER.decode(text)
        # Python reads a lone surrogate, which UTF-8 cannot hold: storing it would fail later. It may be in the text
        # itself, or escaped there, as \ud800
        text.encode()
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as cause:
        half = f"\\u{ord(cause.object[cause.start]):04x}"
        raise UnreadableBodyError(f"the body holds {half}, half of a character: send both or neither") from cause
    except (ValueError, RecursionError) as cause:  # RecursionError: brackets nested thousands deep
        raise UnreadableBodyError("the body must be JSON in UTF-8") from cause
    if not isinstance(value, dict):
        raise UnreadableBodyError(f"the body must be a JSON object, such as {example}")
    return value


class Fields:
    """The fields of one JSON object.

    Each reader returns None for a field that is absent, null or wrong. Wrong ones are noted until `check` raises them.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._place = ""
        self._missing: list[FieldProblem] = []
        self._wrong: list[FieldProblem] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fields that were sent; null counts as absent."""
        return tuple(name for name, value in self._values.items() if value is not None)

    def text(self, name: str, *, required: bool = False) -> str | None:
        """A string without NUL characters, which PostgreSQL cannot store."""
        found = self._read(name, _as_text, "must be a string", required=required)
        if found is None or "\0" not in found:
            return found
        self.refuse(name, NO_NUL)
        return None

    def choice(self, name: str, options: tuple[str, ...], *, required: bool = False) -> str | None:
        """One of `options`."""
        found = self.text(name, required=required)
        if found is None or found in options:
            return found
        self.refuse(name, f"must be one of {', '.join(options)}, got {found[:100]!r}")
        return None

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, both included; 4.0 counts as 4."""
        found = self._read(name, _as_whole, f"must be a whole number {show_range(low, high)}")
        return self._within(name, found, low, high)

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`, both included."""
        found = self._read(name, _as_number, f"must be a number {show_range(low, high)}")
        return self._within(name, found, low, high)

    def any_number(self, name: str, example: float) -> float | None:
        """A number of any size that JSON's readers agree on; `example` is shown for what is none."""
        return self._read(name, _as_number, f"must be a number, such as {example:g}")

    def any_whole(self, name: str, example: int) -> int | None:
        """The same of whole numbers; 4.0 counts as 4."""
        return self._read(name, _as_whole, f"must be a whole number, such as {example}")

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean; `default` where it is absent or wrong."""
        found = self._read(name, _as_flag, "must be true or false")
        return default if found is None else found

    def object(self, name: str, *, required: bool = False) -> dict[str, Any] | None:
        """A JSON object."""
        return self._read(name, _as_object, "must be an object", required=required)

    def within(self, place: str, values: Mapping[str, Any]) -> "Fields":
        """The fields of an object inside this one. Their problems are noted here, with `place` before their names."""
        inner = Fields(values)
        inner._place = f"{place}."
        inner._missing, inner._wrong = self._missing, self._wrong
        return inner

    def raw(self, name: str) -> Any:
        """The value as it was sent, unchecked; None where it is absent."""
        return self._values.get(name)

    def refuse(self, name: str, message: str) -> None:
        """Note what is wrong with a field."""
        self._wrong.append(FieldProblem(self._place + name, message))

    def require(self, name: str, message: str = "is required") -> None:
        """Note that a field is missing."""
        self._missing.append(FieldProblem(self._place + name, message))

    def check(self) -> None:
        """Raise the problems noted so far, missing fields before wrong ones.

        Raises:
            MissingFieldError: a required field is absent.
            InvalidFieldError: a field's value is wrong.
        """
        if self._missing:
            raise MissingFieldError(*self._missing)
        if self._wrong:
            raise InvalidFieldError(*self._wrong)

    def _read(
        self, name: str, convert: Callable[[Any], _Value], message: str, *, required: bool = False
    ) -> _Value | None:
        value = self._values.get(name)
        if value is None:
            if required:
                self.require(name)
            return None
        try:
            return convert(value)
        except TypeError:
            pass
        self.refuse(name, f"{message}, got {_show(value)}")
        return None

    def _within(self, name: str, found: _Number | None, low: float, high: float) -> _Number | None:
        if found is None or low <= found <= high:
            return found
        self.refuse(name, f"must be {show_range(low, high)}, got {found:.15g}")
        return None


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _as_whole(value: Any) -> int:
    number = _as_number(value)
    if number != int(number):
        raise TypeError
    return int(value)


def _as_number(value: Any) -> float:
    # Python's bool is an int
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MAX_NUMBER < value < _MAX_NUMBER:
        raise TypeError
    return value


def _as_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def show_range(low: float, high: float) -> str:
    """A range of numbers, both ends included, as errors tell of it."""
    least, most = whole_number(low), whole_number(high)
    # a hyphen would look like a second minus
    return f"{least}-{most}" if least >= 0 else f"{least} to {most}"


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
