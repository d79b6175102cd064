"""Pictures found again by what they carry, whoever's they are: by an invisible mark, or by their credentials' label.

What is told of them is for strangers: never the prompt, the LoRAs or the team.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, select

from schnell.database.connection import Connection
from schnell.database.tables import images, records
from schnell.errors import NotFoundError
from schnell.generations.records import IS_VISIBLE
from schnell.spec import output_seed

#: Two pictures may share a mark; more than some are not expected, and many would be somebody's game.
_MOST: Final = 20


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """A stored picture that this service has drawn. `receipt` is whole: whoever shows it decides what of it."""

    key: str
    media_type: str
    manifest: str | None
    model: str
    created_at: datetime
    receipt: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What anybody may know of it."""
        return {"created_at": self.created_at.isoformat(), "model": self.model, "manifest_id": self.manifest}


async def find_by_mark(connection: Connection, mark: str) -> list[DrawnPicture]:
    """The stored pictures whose mark carries this (ten hexadecimal digits), oldest first."""
    return await _find(connection, images.c.mark == mark)


async def find_by_manifest(connection: Connection, label: str) -> DrawnPicture:
    """The stored picture whose credentials have this label. Raises NotFoundError."""
    found = await _find(connection, images.c.manifest == label)
    if not found:
        raise NotFoundError("no credentials have this id")
    return found[0]


async def _find(connection: Connection, condition: ColumnElement[bool]) -> list[DrawnPicture]:
    query = (
        select(images, records.c.receipts, records.c.response_object)
        .join(records, records.c.id == images.c.record_id)
        .where(condition, images.c.state == "STORED", records.c.status == "SUCCESS", IS_VISIBLE)
        .order_by(images.c.created_at, images.c.key)
        .limit(_MOST)
    )
    found = []
    for row in await connection.execute(query):
        # receipts are in the order of the outputs, without those that were flagged: the seed tells which is which
        seed = output_seed(int(row.response_object["seed"]), row.output)
        receipt = next((each for each in row.receipts if each.get("seed") == seed), None)
        if receipt is not None:
            model = str(receipt["model"]["name"])
            found.append(DrawnPicture(row.key, row.media_type, row.manifest, model, row.created_at, receipt))
    return found
