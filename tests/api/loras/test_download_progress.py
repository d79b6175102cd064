"""A LoRA that must be fetched first shows how far it is in the stream of the request that waits for it."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from counts import repeats
from mini_loras import lora_bytes
from server_process import serving
from servers import Server, body_with, key_for
from tls_server import Asked, Reply, TlsServer, run_tls_server

PATH = "/a/style.safetensors"
Event = tuple[str, dict[str, Any]]


@pytest.fixture
def site() -> Iterator[TlsServer]:
    with run_tls_server() as found:
        yield found


@pytest.fixture
def fetching(serve: Callable[..., Any], site: TlsServer, tmp_path: Path) -> Callable[[], Any]:
    """A server that may fetch from the site."""
    authority = site.write_authority(tmp_path / "ca.pem")
    return lambda: serve(lora_private_networks=("127.0.0.0/8", "::1/128"), lora_ca_file=authority)


async def stream(server: Server, **values: Any) -> tuple[int, list[Event]]:
    answer = await server.client.post("/api/features?isStreaming=true", json=body_with(**values))
    blocks = [block for block in answer.text.replace("\r\n", "\n").split("\n\n") if block.startswith("event:")]
    lines = [block.split("\n") for block in blocks]
    return answer.status_code, [(each[0][7:], json.loads(each[1][6:])) for each in lines]


async def test_the_stream_tells_of_the_download_and_then_of_the_picture(
    fetching: Callable[[], Any], site: TlsServer
) -> None:
    data = lora_bytes(7)
    site.serve(PATH, data)
    async with fetching() as server:
        status, events = await stream(server, lora_weights=site.url(PATH))
        assert status == 200
        names = [name for name, _ in events]
        assert names[:2] == ["queued", "download"]
        assert names[-1] == "done"
        after = names[len(names) - names[::-1].index("download") :]
        assert after[0] == "queued"
        assert "step" in after
        last = [told for name, told in events if name == "download"][-1]
        assert last == {"lora": site.url(PATH), "received": len(data), "total": len(data)}
        _, again = await stream(server, lora_weights=site.url(PATH))
        assert [name for name, _ in again if name == "download"] == []


async def test_a_download_that_is_refused_after_it_began_ends_the_stream_with_the_error(
    fetching: Callable[[], Any], site: TlsServer
) -> None:
    site.serve(PATH, lora_bytes(1, width=3072))
    async with fetching() as server:
        status, events = await stream(server, lora_weights=site.url(PATH))
        assert status == 200
        assert [name for name, _ in events][-1] == "error"
        assert events[-1][1]["errorCode"] == "INVALID_LORA"
        assert server.runner.jobs == []


async def test_what_is_refused_without_asking_anybody_has_its_own_status(
    fetching: Callable[[], Any], site: TlsServer
) -> None:
    async with fetching() as server:
        for reference in ("nobody-has-this", "https://0177.0.0.1:9/a.safetensors"):
            assert await stream(server, lora_weights=reference) == (400, [])
        status, events = await stream(server, lora_weights=site.url("/a/nothing.safetensors"))
        assert (status, [name for name, _ in events]) == (200, ["queued", "error"])
        drawn = await server.draw(lora_weights=site.url("/a/nothing.safetensors"))
        assert (drawn.status_code, drawn.json()["errorCode"]) == (400, "LORA_DOWNLOAD_FAILED")
        assert (await server.client.get("/api/session")).json()["usedCredit"] == 0


async def test_nothing_is_fetched_for_a_dry_run_nor_for_who_cannot_pay(
    fetching: Callable[[], Any], site: TlsServer
) -> None:
    site.serve(PATH, lora_bytes(7))
    async with fetching() as server:
        poor = await key_for(server, "poor", credit_limit=0)
        dry = body_with(lora_weights=site.url(PATH)) | {"dryRun": True}
        answer = await server.client.post("/api/features", json=dry, headers=poor)
        assert "not here yet, its size is unknown" in answer.json()["dryRun"]["warnings"][0]
        for number in range(repeats(300)):
            body = body_with(lora_weights=site.url(f"/{number}.safetensors")) | {"dryRun": number % 3 == 0}
            status = (await server.client.post("/api/features", json=body, headers=poor)).status_code
            assert status == (402 if number % 3 else 200)
        added = await server.client.post("/api/loras", json={"source": site.url(PATH)}, headers=poor)
        assert added.status_code == 402
        files = {"file": ("a.safetensors", lora_bytes(1))}
        for path in ("/api/loras", "/api/loras/inspect"):
            assert (await server.client.post(path, files=files, headers=poor)).status_code == 402
        assert (await server.client.post("/loras", json={"source": site.url(PATH)}, headers=poor)).status_code == 402
        assert site.asked == []
        assert not list(server.services.loras._files.folder.glob("**/*"))


async def test_two_streams_of_one_download_both_hear_of_it(fetching: Callable[[], Any], site: TlsServer) -> None:
    data, gate = lora_bytes(8), threading.Event()
    waiting: list[Asked] = []

    def answer(asked: Asked) -> Reply:
        waiting.append(asked)
        gate.wait(20)
        return Reply(200, data)

    site.routes[PATH] = answer
    async with fetching() as server:
        asking = [asyncio.create_task(stream(server, lora_weights=site.url(PATH))) for _ in range(2)]
        while not waiting:  # noqa: ASYNC110 - what is waited for happens in the site's thread
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        gate.set()
        for _, events in await asyncio.gather(*asking):
            assert [name for name, _ in events][:2] == ["queued", "download"]
            assert events[-1][0] == "done"
    assert len(site.asked) == 1


async def ended_record(client: httpx.AsyncClient) -> dict[str, Any]:
    for _ in range(600):
        found = (await client.get("/api/features")).json()["aiRecords"]
        if found and found[0]["status"] in {"SUCCESS", "FAILURE"}:
            return dict(found[0])
        await asyncio.sleep(0.05)
    raise TimeoutError


async def test_who_hangs_up_during_the_download_gets_no_picture_and_pays_nothing(
    site: TlsServer, tmp_path: Path
) -> None:
    site.serve(PATH, lora_bytes(9))
    whole, gate = site.routes[PATH], threading.Event()

    def answer(asked: Asked) -> Reply:
        """Break off after a part; give the rest when the gate opens."""
        reply = whole(asked)
        if "range" in asked.headers:
            gate.wait(30)
        else:
            reply.cut = 1000
        return reply

    site.routes[PATH] = answer
    authority = str(site.write_authority(tmp_path / "ca.pem"))
    with serving(tmp_path, 0.6, lora_private_networks="127.0.0.0/8,::1/128", lora_ca_file=authority) as server:
        async with server.client() as client:
            body = body_with(lora_weights=site.url(PATH))
            async with client.stream("POST", "/api/features?isStreaming=true", json=body) as answered:
                lines = answered.aiter_lines()
                while await anext(lines) != "event: download":
                    pass
            gate.set()
            record = await ended_record(client)
            assert record["aiRecordDetail"]["responseObject"]["error"]["errorCode"] == "CANCELLED"
            assert (await client.get("/api/session")).json()["usedCredit"] == 0
