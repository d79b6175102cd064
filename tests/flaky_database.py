"""A real database whose next writes fail in chosen ways."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.errors import CommitUnknownError, DatabaseUnavailableError

#: "away": it does not even begin. "before", "after": the commit fails, without effect or with it. "bug": no outage.
Fault = Literal["away", "before", "after", "bug"]


class FlakyDatabase(Database):
    """Takes one of `faults` for each write, until none is left."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.faults: list[Fault] = []

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        fault = self.faults.pop(0) if self.faults else None
        if fault == "away":
            raise DatabaseUnavailableError("away")
        if fault == "bug":
            raise ValueError("a value that the database refuses")
        async with super().write() as connection:
            yield connection
            if fault == "before":
                raise CommitUnknownError("lost")
        if fault == "after":
            raise CommitUnknownError("lost")
