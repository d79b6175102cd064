import asyncio
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from counts import SOAK
from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, free_port, run_nanio, run_seaweedfs
from schnell.assets.s3 import S3Assets
from schnell.errors import AssetError, NotFoundError

KEY = "development/images/2025_10_24_15_09_24_339_000001.webp"
SERVERS = {"nanio": run_nanio, "seaweedfs": run_seaweedfs}


async def fetch(url: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(url)


@pytest.fixture(scope="module", params=["nanio", pytest.param("seaweedfs", marks=pytest.mark.soak)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if request.param == "seaweedfs" and not SOAK:
        pytest.skip("runs in make soak")
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def store(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Assets:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    return S3Assets(BUCKET, "some/prefix", endpoint=server.endpoint)


async def test_what_was_put_comes_back_and_goes(store: S3Assets) -> None:
    await store.put(KEY, b"picture", "image/webp")
    assert await store.get(KEY) == b"picture"
    assert await store.list_keys() == [KEY]
    await store.delete([KEY, KEY])
    assert await store.list_keys() == []
    with pytest.raises(NotFoundError):
        await store.get(KEY)


async def test_a_link_gives_the_picture_with_its_headers(store: S3Assets) -> None:
    await store.put(KEY, b"picture", "image/webp")
    answer = await fetch(store.url(KEY, 604_800))
    assert answer.status_code == 200
    assert answer.content == b"picture"
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-disposition"] == 'inline; filename="2025_10_24_15_09_24_339_000001.webp"'
    assert "immutable" in answer.headers["cache-control"]


async def test_a_link_is_signature_version_4_for_a_week(store: S3Assets) -> None:
    query = parse_qs(urlsplit(store.url(KEY, 604_800)).query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["604800"]


async def test_tampered_and_expired_links_are_refused(store: S3Assets) -> None:
    await store.put(KEY, b"picture", "image/webp")
    link = store.url(KEY, 604_800)
    last = "0" if link[-1] != "0" else "1"
    signature = parse_qs(urlsplit(link).query)["X-Amz-Signature"][0]
    tampered = [
        link.replace(signature, signature[:-1] + ("0" if signature[-1] != "0" else "1")),
        link.replace("_000001.webp", "_000002.webp"),
        link.replace("X-Amz-Expires=604800", "X-Amz-Expires=604799"),
        link.partition("?")[0],
        f"{link}{last}",
    ]
    for wrong in tampered:
        assert (await fetch(wrong)).status_code in {400, 403}, wrong
    short = store.url(KEY, 1)
    await asyncio.sleep(2.1)
    assert (await fetch(short)).status_code == 403


async def test_links_are_signed_for_the_public_endpoint(server: S3Server, store: S3Assets) -> None:
    await store.put(KEY, b"picture", "image/webp")
    public = server.endpoint.replace("127.0.0.1", "localhost")
    other = S3Assets(BUCKET, "some/prefix", endpoint=server.endpoint, public_endpoint=public)
    link = other.url(KEY, 60)
    assert link.startswith(public)
    assert (await fetch(link)).content == b"picture"


async def test_a_missing_bucket_is_told_by_name(server: S3Server, store: S3Assets) -> None:
    await store.check()
    with pytest.raises(AssetError, match="no-such-bucket"):
        await S3Assets("no-such-bucket", endpoint=server.endpoint).check()


def test_session_credentials_are_noticed(store: S3Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not store.has_session_credentials()
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    assert store.has_session_credentials()


async def test_a_bucket_that_cannot_be_reached_is_the_stores_error(store: S3Assets) -> None:
    nowhere = S3Assets(BUCKET, endpoint=f"http://127.0.0.1:{free_port()}")
    for action in (nowhere.put(KEY, b"x", "image/webp"), nowhere.get(KEY), nowhere.delete([KEY]), nowhere.list_keys()):
        with pytest.raises(AssetError, match="cannot be reached"):
            await action


async def test_what_lies_elsewhere_in_the_bucket_is_not_listed(server: S3Server, store: S3Assets) -> None:
    other = S3Assets(BUCKET, "another", endpoint=server.endpoint)
    await other.put(KEY, b"theirs", "image/webp")
    await store.put(KEY, b"ours", "image/webp")
    assert await store.list_keys() == await other.list_keys() == [KEY]
    await store.delete([KEY])
    assert await other.get(KEY) == b"theirs"
    await other.delete([KEY])
