"""What comes before anyone is known is bounded, over real sockets."""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from counts import repeats
from server_process import ServerProcess, serving
from servers import BODY, Server


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("door")) as found:
        yield found


def port_of(server: ServerProcess) -> int:
    return int(server.url.rpartition(":")[2])


def resident_mib(server: ServerProcess) -> float:
    status = Path(f"/proc/{server.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


async def send_without_end(server: ServerProcess, opening: bytes, piece: bytes, most: int) -> int:
    """How many bytes the server takes before it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    sent = 0
    with contextlib.suppress(OSError):
        writer.write(opening)
        while sent < most and not reader.at_eof():
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            await asyncio.sleep(0)
    writer.close()
    return sent


HEAD = b"POST /api/session HTTP/1.1\r\nHost: x\r\n"
ENDLESS = {
    "headers": (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 4096),
    "one header": (b"GET / HTTP/1.1\r\nX: ", b"y" * 65_536),
    "a path": (b"GET /", b"y" * 65_536),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: y\r\n" * 4096),
    "a form": (
        b"POST /api/loras HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9999999\r\n\r\n",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ny\r\n' * 1000,
    ),
    "a body": (HEAD + b"Content-Type: application/json\r\nContent-Length: 100000000\r\n\r\n", b" " * 65_536),
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_what_has_no_end_takes_no_memory(door: ServerProcess, kind: str) -> None:
    before = resident_mib(door)
    opening, piece = ENDLESS[kind]
    await send_without_end(door, opening, piece, repeats(100_000_000))
    assert resident_mib(door) - before < 20
    async with door.client() as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_half_requests_lock_nobody_out(door: ServerProcess) -> None:
    halves = [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", HEAD + b"Content-Length: 100\r\n\r\nhalf"]
    before = resident_mib(door)
    opened = []
    for number in range(repeats(2_000)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(door))
        writer.write(halves[number % 3])
        opened.append((reader, writer))
    async with door.client() as client:
        for _ in range(10):
            assert (await client.post("/api/features", json=BODY)).status_code == 200
        # the oldest are gone, those that came last may go on
        assert await asyncio.wait_for(opened[0][0].read(), 5) != b"still open"
        assert opened[0][0].at_eof()
        assert not opened[-1][0].at_eof()
    assert resident_mib(door) - before < 20
    for _, writer in opened:
        writer.close()


async def test_a_known_caller_may_take_time_for_a_body(door: ServerProcess) -> None:
    async def slowly() -> object:
        body = json.dumps(BODY).encode()
        yield body[:10]
        await asyncio.sleep(0.2)
        # others come and go meanwhile, more of them than may be unfinished
        others = [await asyncio.open_connection("127.0.0.1", port_of(door)) for _ in range(150)]
        yield body[10:]
        for _, writer in others:
            writer.close()

    async with door.client() as client:
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/api/features", content=slowly(), headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 200


async def test_many_headers_are_refused_in_words(door: ServerProcess) -> None:
    async with door.client() as client:
        answer = await client.get("/healthz", headers={f"x-{number}": "y" for number in range(300)})
        assert (answer.status_code, answer.json()["errorCode"]) == (431, "HEADERS_TOO_LARGE")


async def test_an_unexpected_error_and_its_traceback_have_the_requests_id(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(server.services.rates.__class__, "count", fail)
    answer = await server.client.post("/api/features", json=BODY, headers={"X-Request-Id": "mine-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-1")
    assert "mine-1" in answer.json()["message"]
    assert "inside" not in answer.text
    [record] = [each for each in caplog.records if each.exc_info]
    assert vars(record)["request_id"] == "mine-1"


async def test_a_full_disk_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server.services.rates.__class__, "count", fail)
    for path, body in (("/api/features", BODY), ("/v1/images/generations", {"prompt": "x"})):
        answer = await server.client.post(path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        assert "DISK_UNAVAILABLE" in answer.text.upper()


async def sign_in(server: Server, **headers: str) -> httpx.Response:
    return await server.client.post("/api/session", json={"key": server.client.headers["API-KEY"]}, headers=headers)


async def test_a_cookie_dies_with_its_sign_out_and_no_other_does(server: Server) -> None:
    cookies = []
    for _ in range(2):
        answer = await sign_in(server)
        assert answer.status_code == 204
        cookies.append(answer.headers["set-cookie"].partition(";")[0])
    server.client.cookies.clear()
    del server.client.headers["API-KEY"]

    async def status(cookie: str, method: str = "GET") -> int:
        return (await server.client.request(method, "/api/session", headers={"Cookie": cookie})).status_code

    assert [await status(each) for each in cookies] == [200, 200]
    assert await status(cookies[0], "DELETE") == 204
    assert [await status(each) for each in cookies] == [401, 200]
    assert await status(cookies[0], "DELETE") == 204


@pytest.mark.parametrize(
    ("host", "headers", "expected"),
    [
        ("127.0.0.1:8000", {"Origin": "http://127.0.0.1:8000"}, 204),
        ("192.168.1.5:8000", {"Origin": "http://192.168.1.5:8000"}, 204),
        ("evil.test:8000", {"Origin": "http://evil.test:8000"}, 403),
        ("127.0.0.1:8000", {"Origin": "http://evil.test"}, 403),
        ("127.0.0.1:8000", {"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_another_site_signs_no_browser_in(
    server: Server, host: str, headers: dict[str, str], expected: int
) -> None:
    assert (await sign_in(server, Host=host, **headers)).status_code == expected


@pytest.mark.parametrize(
    "target",
    [
        "//evil.test/",
        "/\\evil.test/",
        "/\t/evil.test/",
        "/\n/evil.test/",
        "\t//evil.test/",
        "https://evil.test/",
        "/a\\b",
        "",
    ],
)
async def test_signing_in_leads_to_this_site_only(server: Server, target: str) -> None:
    page = await server.client.get("/sign-in", params={"next": target})
    assert 'data-next="/"' in page.text
    own = await server.client.get("/sign-in", params={"next": "/gallery?q=a%20b&lora=x"})
    assert 'data-next="/gallery?q=a%20b&amp;lora=x"' in own.text


async def test_the_database_and_the_secret_are_for_their_owner_alone(server: Server, tmp_path: Path) -> None:
    await server.draw()
    for name in ("schnell.db", "link.secret"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
