"""From `POST /api/features` to a presigned link and back, with a real server over a real bucket."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from counts import SOAK
from fakes import FakeRunner
from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, free_port, run_nanio, run_seaweedfs
from schnell.assets.s3 import S3Assets
from server_process import ServerProcess, serving
from servers import body_with, run_server

S3_SERVERS = {"nanio": run_nanio, "seaweedfs": run_seaweedfs}


@pytest.fixture(scope="module", params=["nanio", pytest.param("seaweedfs", marks=pytest.mark.soak)])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if request.param == "seaweedfs" and not SOAK:
        pytest.skip("runs in make soak")
    with S3_SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def server(bucket: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        with serving(
            tmp_path_factory.mktemp("server"),
            assets_url=f"s3://{BUCKET}/some/prefix",
            s3_endpoint=bucket.endpoint,
            s3_public_endpoint=public(bucket),
        ) as running:
            yield running


@pytest.fixture
def store(bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Assets:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    return S3Assets(BUCKET, "some/prefix", endpoint=bucket.endpoint)


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


def public(bucket: S3Server) -> str:
    """Another name for the same server, as clients would know it."""
    return bucket.endpoint.replace("127.0.0.1", "localhost")


async def draw(client: httpx.AsyncClient, **prompt_object: Any) -> dict[str, Any]:
    answer = await client.post("/api/features", json=body_with(**prompt_object))
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()["aiRecord"]
    return record


async def fetch(link: str) -> httpx.Response:
    async with httpx.AsyncClient() as stranger:
        return await stranger.get(link)


async def test_a_strangers_browser_opens_the_links_of_a_record(client: httpx.AsyncClient, bucket: S3Server) -> None:
    record = await draw(client, num_outputs=2, output_format="png")
    links, keys = (record["aiRecordDetail"][part] for part in ("responseObject", "resultObject"))
    assert len(links["temporaryUrls"]) == len(keys) == 2
    assert links["temporaryUrls"][0] == record["temporaryUrl"]
    for link, key in zip(links["temporaryUrls"], keys, strict=True):
        assert link.startswith(f"{public(bucket)}/{BUCKET}/some/prefix/{key}?")
        assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == ["604800"]
        answer = await fetch(link)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"] == f'inline; filename="{key.rpartition("/")[2]}"'
        assert "immutable" in answer.headers["cache-control"]
        assert answer.content


async def test_a_changed_link_is_refused(client: httpx.AsyncClient) -> None:
    link, other = [(await draw(client))["temporaryUrl"] for _ in range(2)]
    signature = parse_qs(urlsplit(link).query)["X-Amz-Signature"][0]
    changed = [
        link.replace(signature, parse_qs(urlsplit(other).query)["X-Amz-Signature"][0]),
        link.replace("X-Amz-Expires=604800", "X-Amz-Expires=604799"),
        link.replace(urlsplit(link).path, urlsplit(other).path),
        link.partition("?")[0],
    ]
    for each in changed:
        assert (await fetch(each)).status_code in {400, 403}, each
    assert (await fetch(link)).status_code == 200


async def test_a_deleted_record_takes_its_picture_along(client: httpx.AsyncClient, store: S3Assets) -> None:
    record = await draw(client)
    [key] = record["aiRecordDetail"]["resultObject"]
    assert key in await store.list_keys()
    assert (await client.delete(f"/api/results/{record['uuid']}")).status_code == 204
    async with asyncio.timeout(30):
        # a thumbnail that was being made meanwhile is there for a moment more, and goes by itself
        while key in await store.list_keys():  # noqa: ASYNC110 - a store tells nobody
            await asyncio.sleep(0.1)
    assert (await fetch(record["temporaryUrl"])).status_code == 404


async def test_a_flagged_picture_is_never_uploaded(tmp_path: Path, bucket: S3Server, store: S3Assets) -> None:
    before = set(await store.list_keys())
    settings = {"assets_url": f"s3://{BUCKET}/some/prefix", "s3_endpoint": bucket.endpoint}
    async with run_server(tmp_path, FakeRunner(flagged=[0]), **settings) as server:
        record = (await server.draw(num_outputs=2)).json()["aiRecord"]
        assert set(await store.list_keys()) - before == set(record["aiRecordDetail"]["resultObject"])
        assert (await server.draw()).json()["errorCode"] == "NSFW_CONTENT"
    assert len(set(await store.list_keys()) - before) == 1


async def test_a_links_life_is_the_operators_choice(
    tmp_path: Path, bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    assets = f"s3://{BUCKET}"
    with serving(tmp_path, assets_url=assets, s3_endpoint=bucket.endpoint, link_seconds="1") as server:
        async with server.client() as client:
            link = (await draw(client))["temporaryUrl"]
            assert (await fetch(link)).status_code == 200
            await asyncio.sleep(2.1)
            assert (await fetch(link)).status_code == 403


async def test_a_bucket_that_is_away_fails_the_request_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    endpoint = f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path, assets_url=f"s3://{BUCKET}", s3_endpoint=endpoint) as server:
        async with server.client() as client:
            answer = await client.post("/api/features", json=body_with())
            assert (answer.status_code, answer.json()["errorCode"]) == (503, "STORAGE_FAILED")
            assert (await client.get("/api/session")).json()["usedCredit"] == 0
