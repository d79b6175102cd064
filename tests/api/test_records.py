from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import update

from schnell.accounts.keys import create_key
from schnell.accounts.teams import create_team, find_member
from schnell.assets.store import thumbnail_key
from schnell.clock import now
from schnell.database.tables import images
from schnell.generations.recovery import apply_retention, find_orphans
from servers import Server, run_server


async def other_team_headers(server: Server) -> dict[str, str]:
    async with server.services.database.write() as connection:
        team = await create_team(connection, "others")
        member = await find_member(connection, team.id)
        return {"API-KEY": (await create_key(connection, team.id, member.user_id)).secret}


async def test_history_pages_through_every_record_newest_first(server: Server) -> None:
    made = [(await server.draw(aspect_ratio="1:1")).json()["aiRecord"]["uuid"] for _ in range(7)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await server.client.get("/api/features", params=params)).json()
        seen += [record["uuid"] for record in page["aiRecords"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert seen == made[::-1]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "cursor=x", "cursor=1.2", "cursor=99999999999999999.x"]
)
async def test_wrong_page_parameters_are_refused_by_name(server: Server, query: str) -> None:
    answer = await server.client.get(f"/api/features?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["details"]


async def test_a_record_is_shown_as_it_was_answered(server: Server) -> None:
    record = (await server.draw(seed=7)).json()["aiRecord"]
    again = (await server.client.get(f"/api/results/{record['uuid']}")).json()["aiRecord"]
    for changing in ("temporaryUrl",):
        assert again.pop(changing)
        record.pop(changing)
    for each in (record, again):
        del each["aiRecordDetail"]["responseObject"]["temporaryUrls"]
    assert again == record


async def test_rating_and_feedback_are_kept(server: Server) -> None:
    path = f"/api/results/{(await server.draw()).json()['aiRecord']['uuid']}"
    await server.client.post(f"{path}/rating", json={"rating": 4})
    await server.client.post(f"{path}/feedback", json={"feedback": "just right"})
    record = (await server.client.get(path)).json()["aiRecord"]
    assert (record["rating"], record["feedback"]) == (4, "just right")
    assert (await server.client.post(f"{path}/rating", json={"rating": 6})).status_code == 400
    assert (await server.client.post(f"{path}/feedback", json={"feedback": 6})).status_code == 400


async def test_deleting_removes_record_and_pictures_but_not_the_charge(server: Server) -> None:
    path = f"/api/results/{(await server.draw(num_outputs=2)).json()['aiRecord']['uuid']}"
    assert (await server.client.delete(path)).status_code == 204
    assert (await server.client.get(path)).status_code == 404
    assert (await server.client.delete(path)).status_code == 404
    assert await server.services.store.list_keys() == []
    assert (await server.client.get("/api/session")).json()["usedCredit"] == 800


async def test_another_teams_records_are_as_if_they_were_not(server: Server) -> None:
    uuid = (await server.draw()).json()["aiRecord"]["uuid"]
    headers = await other_team_headers(server)
    for method, path in (
        ("GET", ""),
        ("POST", "/cancel"),
        ("POST", "/rating"),
        ("POST", "/feedback"),
        ("DELETE", ""),
    ):
        body = {"rating": 1, "feedback": "x"} if method == "POST" else None
        answer = await server.client.request(method, f"/api/results/{uuid}{path}", headers=headers, json=body)
        assert (answer.status_code, answer.json()["errorCode"]) == (404, "NOT_FOUND"), path
    assert (await server.client.get("/api/features", headers=headers)).json()["aiRecords"] == []
    assert (await server.client.get(f"/api/results/{uuid}")).json()["aiRecord"]["rating"] is None


async def test_unknown_and_malformed_ids_are_clear_errors(server: Server) -> None:
    assert (await server.client.get(f"/api/results/{uuid4()}")).status_code == 404
    answer = await server.client.get("/api/results/not-a-uuid")
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "INVALID_FIELD")


async def test_retention_removes_old_pictures_and_keeps_their_records(server: Server) -> None:
    old, young = [(await server.draw()).json()["aiRecord"] for _ in range(2)]
    async with server.services.database.write() as connection:
        key = old["aiRecordDetail"]["resultObject"][0]
        aged = update(images).where(images.c.key == key).values(created_at=now() - timedelta(days=8))
        await connection.execute(aged)
    assert await apply_retention(server.services.database, server.services.store, 7) == 1
    assert (await server.client.get(old["temporaryUrl"])).status_code == 404
    assert (await server.client.get(young["temporaryUrl"])).status_code == 200
    record = (await server.client.get(f"/api/results/{old['uuid']}")).json()["aiRecord"]
    assert (record["status"], record["temporaryUrl"]) == ("SUCCESS", None)


async def test_files_that_no_record_knows_are_found(server: Server) -> None:
    await server.draw()
    stray = "development/images/2020_01_01_00_00_00_000_000000.webp"
    await server.services.store.put(stray, b"stray", "image/webp")
    assert await find_orphans(server.services.database, server.services.store) == [stray]


async def test_a_thumbnail_whose_picture_is_gone_is_found_and_removed_with_it(server: Server) -> None:
    await server.draw()
    database, store = server.services.database, server.services.store
    gone = "development/images/2020_01_01_00_00_00_000_000000.webp"
    # as a server leaves it that is killed between writing a thumbnail and asking whether its picture is still there
    await store.put(thumbnail_key(gone), b"stray", "image/webp")
    assert await find_orphans(database, store) == [gone]
    await store.delete([gone])
    assert await find_orphans(database, store) == []


async def test_records_survive_a_restart(tmp_path: Path) -> None:
    async with run_server(tmp_path) as server:
        record = (await server.draw()).json()["aiRecord"]
    async with run_server(tmp_path) as server:
        again = (await server.client.get(f"/api/results/{record['uuid']}")).json()["aiRecord"]
        assert again["status"] == "SUCCESS"
        assert (await server.client.get(again["temporaryUrl"])).status_code == 200


async def test_which_model_really_drew_is_in_the_record_and_in_the_answers_header(server: Server) -> None:
    drawn = await server.draw()
    record = drawn.json()["aiRecord"]
    assert record["model"] == "black-forest-labs/flux-schnell-lora"
    assert record["aiRecordDetail"]["responseObject"]["servedModel"] == "paint"
    shown = await server.client.get(f"/api/results/{record['uuid']}")
    prediction = await server.client.get(f"/v1/predictions/{record['uuid']}")
    for answer in (drawn, shown, prediction):
        assert answer.headers["x-schnell-model"] == "paint"
    assert "Drawn with: paint" in prediction.json()["logs"]
    (listed,) = (await server.client.get("/api/features")).json()["aiRecords"]
    assert listed["aiRecordDetail"]["responseObject"]["servedModel"] == "paint"
