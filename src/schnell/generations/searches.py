"""Searching a team's records: which to list, and what they can be searched by."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, or_, select, union

from schnell.database.connection import Connection
from schnell.database.tables import collection_pictures, images, records
from schnell.generations.records import IS_VISIBLE, RecordStatus
from schnell.spec import MAX_LORAS


@dataclass(frozen=True, slots=True)
class RecordSearch:
    """Which records to list; every condition that is given must hold.

    `prompt` is words of the prompt in any case. `rating` is the least one, 1 to 5. `since` is included, `until` not.
    `collection` is the id of one that a picture of the record is in. `has_pictures` leaves out records whose pictures
    are all gone.
    """

    prompt: str = ""
    lora: str = ""
    status: RecordStatus | None = None
    user_id: str = ""
    rating: int = 0
    since: datetime | None = None
    until: datetime | None = None
    collection: str = ""
    has_pictures: bool = False

    def conditions(self) -> list[ColumnElement[bool]]:
        """The search as conditions in SQL."""
        found = [
            records.c.settings["prompt"].as_string().icontains(word, autoescape=True) for word in self.prompt.split()
        ]
        if self.lora:
            found.append(or_(*(_lora_at(place) == self.lora for place in range(MAX_LORAS))))
        if self.status:
            found.append(records.c.status == self.status)
        if self.user_id:
            found.append(records.c.user_id == self.user_id)
        if self.rating:
            found.append(records.c.rating >= self.rating)
        if self.since:
            found.append(records.c.created_at >= self.since)
        if self.until:
            found.append(records.c.created_at < self.until)
        return [*found, *self._picture_conditions()]

    def _picture_conditions(self) -> list[ColumnElement[bool]]:
        # records are many and found by their index: the pictures of each are looked up only then
        stored = and_(images.c.record_id == records.c.id, images.c.state == "STORED")
        if self.collection:
            held = and_(
                stored,
                images.c.key == collection_pictures.c.image_key,
                collection_pictures.c.collection_id == self.collection,
            )
            return [exists().where(held).correlate(records)]
        return [exists().where(stored).correlate(records)] if self.has_pictures else []


async def list_used_loras(connection: Connection, team_id: str) -> list[str]:
    """The names of the LoRAs that a team's pictures were made with."""
    made = (records.c.team_id == team_id, records.c.status == "SUCCESS")
    names = [
        select(_lora_at(place).label("name")).where(*made, _lora_at(place).is_not(None)) for place in range(MAX_LORAS)
    ]
    return sorted((await connection.execute(union(*names))).scalars())


async def has_drawn(connection: Connection, team_id: str) -> bool:
    """Whether the team has records of drawn pictures, also such as are no longer kept."""
    drawn = select(records.c.id).where(records.c.team_id == team_id, records.c.status == "SUCCESS", IS_VISIBLE)
    return (await connection.execute(drawn.limit(1))).first() is not None


# a request names only so many LoRAs, and JSON in SQL is asked by place
def _lora_at(place: int) -> ColumnElement[str]:
    reference: ColumnElement[str] = records.c.settings[("loras", place, "reference")].as_string()
    return reference
