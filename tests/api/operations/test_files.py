import asyncio
import random
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from counts import repeats
from servers import Server, run_server


async def draw_link(server: Server) -> str:
    return str((await server.draw()).json()["aiRecord"]["temporaryUrl"])


async def test_a_link_needs_no_key_and_serves_get_and_head_alike(server: Server) -> None:
    link = await draw_link(server)
    del server.client.headers["API-KEY"]
    got, head = await server.client.get(link), await server.client.head(link)
    assert (got.status_code, head.status_code) == (200, 200)
    assert got.headers["content-length"] == head.headers["content-length"] == str(len(got.content))
    assert head.content == b""
    assert got.headers["content-disposition"].startswith('inline; filename="')
    assert "immutable" in got.headers["cache-control"]
    assert got.headers["x-content-type-options"] == "nosniff"


async def test_ranges_and_etags_work(server: Server) -> None:
    link = await draw_link(server)
    whole = await server.client.get(link)
    part = await server.client.get(link, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(whole.content)}"
    beyond = await server.client.get(link, headers={"Range": "bytes=99999999-"})
    assert beyond.status_code == 416
    same = await server.client.get(link, headers={"If-None-Match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


async def test_tampered_links_are_403(server: Server) -> None:
    link = await draw_link(server)
    path, _, query = link.partition("?")
    expires, signature = query.split("&")
    wrong = [
        path,
        f"{path}?{expires}",
        f"{path}?{signature}&{expires}",
        f"{path}?{expires}0&{signature}",
        f"{path}?{expires}&{signature.upper()}",
        f"{path}?{expires}&{signature}&download=1",
        f"{path}?{expires}&{signature[:-1]}",
        path.replace("/images/", "/images%2f") + f"?{query}",
        path.replace(".webp", ".png") + f"?{query}",
        path.replace("development", "%64evelopment") + f"?{query}",
    ]
    for each in wrong:
        answer = await server.client.get(each)
        assert answer.status_code in {403, 404}, each
        assert answer.json()["errorCode"] in {"FORBIDDEN", "NOT_FOUND"}


async def test_an_expired_link_says_so(server: Server) -> None:
    key = (await server.draw()).json()["aiRecord"]["aiRecordDetail"]["resultObject"][0]
    answer = await server.client.get(server.services.store.url(key, -1))
    assert answer.status_code == 403
    assert "expired" in answer.json()["message"]


async def test_a_removed_picture_is_404(server: Server) -> None:
    record = (await server.draw()).json()["aiRecord"]
    await server.client.delete(f"/api/results/{record['uuid']}")
    assert (await server.client.get(record["temporaryUrl"])).status_code == 404


async def test_a_deleted_pictures_link_opens_nothing_at_once_and_again_after_undo(server: Server) -> None:
    record = (await server.draw(num_outputs=2)).json()["aiRecord"]
    kept = await draw_link(server)
    links = record["aiRecordDetail"]["responseObject"]["temporaryUrls"]
    etag = (await server.client.get(links[0])).headers["etag"]
    known = {"If-None-Match": etag}

    async def statuses() -> list[int]:
        answers = [await server.client.get(link) for link in links]
        answers += [await server.client.head(links[0]), await server.client.get(links[0], headers=known)]
        return [each.status_code for each in answers]

    assert await statuses() == [200, 200, 200, 304]
    deleted = await server.client.post("/gallery/delete", json={"records": [record["uuid"]]})
    assert deleted.json()["deleted"] == [record["uuid"]]
    assert await statuses() == [404] * 4
    gone = await server.client.get(links[0])
    assert "deleted" in gone.json()["message"]
    # a browser must ask again after an undo
    assert "max-age" not in gone.headers.get("cache-control", "")
    assert (await server.client.get(kept)).status_code == 200
    await server.client.post("/gallery/restore", json={"records": [record["uuid"]]})
    assert await statuses() == [200, 200, 200, 304]


async def test_even_a_signed_path_cannot_lead_out_of_the_store(server: Server) -> None:
    assert server.services.local_assets is not None
    for path in ("/files/../schnell.db", "/files/..%2f..%2fschnell.db", "/files/development/images/x.webp"):
        signed = server.services.local_assets.signer.sign(path, 4_000_000_000)
        assert (await server.client.get(signed)).status_code in {403, 404}


async def test_links_survive_a_restart_and_a_new_secret(tmp_path: Path) -> None:
    async with run_server(tmp_path, link_secrets=("first secret",)) as server:
        link = await draw_link(server)
    async with run_server(tmp_path, link_secrets=("second secret", "first secret")) as server:
        assert (await server.client.get(link)).status_code == 200
    async with run_server(tmp_path, link_secrets=("second secret",)) as server:
        assert (await server.client.get(link)).status_code == 403


async def test_no_mutation_of_a_link_is_served(server: Server) -> None:
    link = (await draw_link(server)).removeprefix("http://127.0.0.1:8000").encode()
    assert await ask(server, link) == (200, b"image/webp")
    chance = random.Random(5)
    for _ in range(repeats(10_000)):
        place, gone = chance.randrange(1, len(link)), chance.randrange(3)
        inserted = bytes(chance.choices(b"0123456789abcdefABCDEF/.%&=?_-+;~ ", k=chance.randrange(4)))
        mutated = link[:place] + inserted + link[place + gone :]
        if mutated != link:
            status, media_type = await ask(server, mutated)
            assert status in {400, 403, 404} or not mutated.startswith(b"/files/"), mutated
            assert status < 500, mutated
            assert not media_type.startswith(b"image/"), mutated


async def ask(server: Server, target: bytes) -> tuple[int, bytes]:
    """Status and type of the answer to a GET of exactly these bytes: httpx would put some of them right."""
    raw_path, _, query = target.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    found: list[tuple[int, bytes]] = []
    asked: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return asked.pop() if asked else await asyncio.Future[dict[str, Any]]()  # the client stays

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found.append((message["status"], dict(message["headers"]).get(b"content-type", b"")))

    await server.app(scope, receive, send)
    return found[0]
