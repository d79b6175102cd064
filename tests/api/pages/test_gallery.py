"""What the gallery does with pictures, and who may do it."""

import asyncio
import io
import json
import re
import zipfile
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import update

from schnell.accounts.audit import list_entries
from schnell.clock import now
from schnell.database.tables import collection_pictures, images, records, shares, teams
from schnell.generations.recovery import apply_retention
from schnell.generations.trash import empty_trash
from servers import Server, body_with, key_for

TILES = {"HX-Request": "true"}


def tiles(page: str) -> list[dict[str, Any]]:
    """What the page knows of each picture."""
    found = re.findall(r"data-picture='([^']*)'", page)
    return [json.loads(each) for each in found]


async def shown(server: Server, headers: dict[str, str] | None = None, **query: str) -> list[dict[str, Any]]:
    answer = await server.client.get("/gallery", params=query, headers=TILES | (headers or {}))
    assert answer.status_code == 200
    return tiles(answer.text)


async def team_of(server: Server) -> str:
    return str((await server.client.get("/api/session")).json()["teamId"])


async def member(server: Server, name: str) -> dict[str, str]:
    """The headers of another member, who is no administrator."""
    team = await team_of(server)
    made = await server.client.post(f"/api/admin/teams/{team}/users", json={"name": name, "creditLimit": 1_000_000})
    assert made.status_code == 201, made.text
    key = {"name": name, "user": name, "scopes": ["generate", "read"]}
    return {"API-KEY": (await server.client.post(f"/api/admin/teams/{team}/keys", json=key)).json()["key"]}


async def post(server: Server, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    return await server.client.post(f"/gallery/{path}", json=body, headers=headers or {})


async def test_what_was_deleted_is_hidden_restored_and_at_last_removed(server: Server) -> None:
    await server.draw(prompt="kept")
    await server.draw(prompt="deleted")
    first, second = await shown(server)
    deleted = await post(server, "delete", {"records": [first["record"]]})
    assert deleted.json()["deleted"] == [first["record"]]
    assert [each["prompt"] for each in await shown(server)] == [second["prompt"]]
    assert (await server.client.get(f"/api/results/{first['record']}")).status_code == 404
    assert (await server.client.get(first["thumbnail"])).status_code == 404
    assert (await post(server, "restore", {"records": [first["record"]]})).json() == {"restored": 1}
    assert len(await shown(server)) == 2
    await post(server, "delete", {"records": [first["record"]]})
    services = server.services
    assert await empty_trash(services.database, services.store) == 0  # the time to undo is not over
    assert await empty_trash(services.database, services.store, now() + timedelta(minutes=1)) == 1
    assert (await post(server, "restore", {"records": [first["record"]]})).json() == {"restored": 0}
    assert await services.store.list_keys() == [second["key"]]


async def test_a_member_deletes_their_own_pictures_and_an_administrator_all(server: Server) -> None:
    other = await member(server, "Ada")
    await server.draw(prompt="mine")
    drawn = await server.client.post("/api/features", json=body_with(prompt="theirs"), headers=other)
    assert drawn.status_code == 200, drawn.text
    theirs, mine = await shown(server)
    assert [each["deletable"] for each in await shown(server, other)] == [True, False]
    assert [each["author"] for each in (theirs, mine)] == ["Ada", "Administrator"]
    assert [each["prompt"] for each in await shown(server, other, author="me")] == ["theirs"]
    refused = await post(server, "delete", {"records": [mine["record"], theirs["record"]]}, other)
    assert refused.status_code == 403
    assert "administrator" in refused.json()["message"]
    assert len(await shown(server)) == 2
    assert (await post(server, "delete", {"records": [theirs["record"]]}, other)).status_code == 200
    assert (await post(server, "delete", {"records": [mine["record"]]})).status_code == 200
    # not what an administrator has deleted
    assert (await post(server, "restore", {"records": [mine["record"]]}, other)).json() == {"restored": 0}


async def test_pictures_are_filtered_by_rating_and_day(server: Server) -> None:
    await server.draw(prompt="liked")
    await server.draw(prompt="plain")
    plain, liked = await shown(server)
    await server.client.post(f"/api/results/{liked['record']}/rating", json={"rating": 4})
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    assert [each["prompt"] for each in await shown(server, rating="4")] == ["liked"]
    assert await shown(server, rating="5") == []
    assert len(await shown(server, since=today, until=today)) == 2
    assert await shown(server, until=yesterday) == []
    assert len(await shown(server, since="no day", until="9999-12-31", rating="many")) == 2
    assert plain["rating"] == 0


async def test_a_collection_holds_pictures_not_runs(server: Server) -> None:
    await server.draw(prompt="two", num_outputs=2)
    first, second = await shown(server)
    made = await post(server, "collections", {"name": "Best"})
    assert made.status_code == 201
    path = f"collections/{made.json()['id']}"
    assert (await post(server, "collections", {"name": " Best "})).status_code == 409
    assert (await post(server, "collections", {"name": "  "})).status_code == 400
    keys = {"keys": [second["key"], "development/images/2020_01_01_00_00_00_000_000000.webp"]}
    assert (await post(server, f"{path}/add", keys)).json() == {"added": 1}
    assert (await post(server, f"{path}/add", keys)).json() == {"added": 0}
    assert [each["key"] for each in await shown(server, collection=made.json()["id"])] == [second["key"]]
    assert "Best (1)" in (await server.client.get("/gallery")).text
    assert (await post(server, f"{path}/take-out", {"keys": [second["key"]]})).json() == {"removed": 1}
    assert (await server.client.delete(f"/gallery/{path}")).status_code == 204
    assert (await post(server, f"{path}/add", keys)).status_code == 404
    assert first["record"] == second["record"]


async def test_a_shared_picture_is_open_to_anybody_until_its_link_is_revoked(server: Server) -> None:
    await server.draw(prompt="<b>shown</b> to all")
    (picture,) = await shown(server)
    path = (await post(server, "share", {"key": picture["key"]})).json()["path"]
    assert (await post(server, "share", {"key": picture["key"]})).json()["path"] == path
    anybody = {"API-KEY": ""}
    page = await server.client.get(path, headers=anybody)
    assert page.status_code == 200
    assert "&lt;b&gt;shown&lt;/b&gt;" in page.text
    assert "<b>shown" not in page.text
    assert page.headers["x-robots-tag"] == "noindex"
    assert "&#34;seed&#34;" in page.text  # its receipt
    file = await server.client.get(f"{path}/picture", headers=anybody)
    assert Image.open(io.BytesIO(file.content)).size == (picture["width"], picture["height"])
    assert (await shown(server))[0]["share"] == path
    await post(server, "delete", {"records": [picture["record"]]})
    assert (await server.client.get(path, headers=anybody)).status_code == 404
    await post(server, "restore", {"records": [picture["record"]]})
    assert (await server.client.get(path, headers=anybody)).status_code == 200
    assert (await post(server, "unshare", {"key": picture["key"]})).status_code == 204
    assert (await server.client.get(f"{path}/picture", headers=anybody)).status_code == 404
    assert (await server.client.get("/s/no-such-link", headers=anybody)).status_code == 404


async def test_chosen_pictures_come_in_one_zip(server: Server) -> None:
    await server.draw(prompt="two", num_outputs=2)
    first, second = await shown(server)
    keys = f"{second['key']} development/images/2020_01_01_00_00_00_000_000000.webp {first['key']}"
    answer = await server.client.post("/gallery/download", data={"keys": keys})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [second["file"], first["file"]]
        assert archive.read(first["file"]) == (await server.client.get(first["url"])).content
    assert (await server.client.post("/gallery/download", data={"keys": "nothing"})).status_code == 404


async def test_another_teams_pictures_are_out_of_reach(server: Server) -> None:
    await server.draw(prompt="ours")
    (picture,) = await shown(server)
    others = await key_for(server, "Others", "generate", "read")
    assert await shown(server, others) == []
    assert (await server.client.get(picture["thumbnail"], headers=others)).status_code == 404
    assert (await post(server, "share", {"key": picture["key"]}, others)).status_code == 404
    assert (await post(server, "delete", {"records": [picture["record"]]}, others)).json()["deleted"] == []
    assert (
        await server.client.post("/gallery/download", data={"keys": picture["key"]}, headers=others)
    ).status_code == 404
    assert len(await shown(server)) == 1


async def test_a_gallery_that_retention_emptied_says_so_on_its_first_page(server: Server) -> None:
    services = server.services
    for number in range(30):
        await server.draw(prompt=f"old {number}", num_inference_steps=1)
    async with services.database.write() as connection:
        await connection.execute(update(images).values(state="DELETING"))
    page = (await server.client.get("/gallery")).text
    assert "Nothing is kept any more" in page
    assert 'hx-trigger="revealed"' not in page
    assert (await server.client.get("/api/features")).json()["nextCursor"] is not None


@pytest.mark.parametrize("size", [2000])
async def test_a_page_of_many_pictures_is_as_long_as_one_of_few(server: Server, size: int) -> None:
    """The bytes of the page; its time is measured by the benchmark, not by a test."""
    await server.draw(prompt="copied", num_inference_steps=1)
    services = server.services
    async with services.database.read() as connection:
        record = (await connection.execute(records.select())).mappings().one()
        image = (await connection.execute(images.select())).mappings().one()
    rows = [dict(record) | {"id": f"{number:036d}"} for number in range(size)]
    pictures = [
        dict(image) | {"key": f"{image['key'][:-11]}{number:06d}.webp", "record_id": row["id"]}
        for number, row in enumerate(rows)
    ]
    async with services.database.write() as connection:
        await connection.execute(records.insert(), rows)
        await connection.execute(images.insert(), pictures)
    page = await server.client.get("/gallery")
    assert page.text.count("<figure") == 24
    assert len(page.content) < 60_000


async def kept_about(server: Server) -> list[int]:
    """How many rows there are about links, and about pictures in collections."""
    async with server.services.database.read() as connection:
        return [len((await connection.execute(each.select())).all()) for each in (shares, collection_pictures)]


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_picture_that_goes_takes_its_link_and_its_places_in_collections_along(server: Server, how: str) -> None:
    await server.draw(prompt="gone")
    (picture,) = await shown(server)
    await post(server, "share", {"key": picture["key"]})
    made = await post(server, "collections", {"name": "Best"})
    await post(server, f"collections/{made.json()['id']}/add", {"keys": [picture["key"]]})
    assert await kept_about(server) == [1, 1]
    if how == "deleted":
        assert (await server.client.delete(f"/api/results/{picture['record']}")).status_code == 204
    else:
        assert await apply_retention(server.services.database, server.services.store, 0) == 1
    assert await kept_about(server) == [0, 0]


async def test_links_are_in_the_audit_log_and_an_inactive_team_shows_nothing(server: Server) -> None:
    await server.draw(prompt="shown")
    (picture,) = await shown(server)
    asked = [post(server, "share", {"key": picture["key"]}) for _ in range(3)]
    (path,) = {answer.json()["path"] for answer in await asyncio.gather(*asked)}
    database = server.services.database
    for status, answered in (("INACTIVE", 404), ("ACTIVE", 200)):
        async with database.write() as connection:
            await connection.execute(update(teams).values(status=status))
        assert (await server.client.get(path, headers={"API-KEY": ""})).status_code == answered
    for _ in range(2):
        assert (await post(server, "unshare", {"key": picture["key"]})).status_code == 204
    async with database.read() as connection:
        found = await list_entries(connection, action="share")
    assert [(each.action, each.target) for each in found] == [
        ("share.revoked", picture["key"]),
        ("share.made", picture["key"]),
    ]
