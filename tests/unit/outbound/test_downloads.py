import asyncio
import hashlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counts import repeats
from schnell.errors import LoraDownloadError, LoraSourceError
from schnell.outbound.addresses import AddressPolicy
from schnell.outbound.downloads import Downloader, DownloadLimits, RemoteFile
from tls_server import Asked, Reply, TlsServer, run_tls_server

DATA = bytes(range(256)) * 2000
LOCAL = AddressPolicy(private_networks=("127.0.0.0/8", "::1/128"))


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def content(path: Path) -> bytes:
    return path.read_bytes()


def downloader(site: TlsServer, folder: Path, policy: AddressPolicy = LOCAL, **options: Any) -> Downloader:
    limits = DownloadLimits(max_bytes=options.pop("max_bytes", 10**7), seconds=options.pop("seconds", 20))
    return Downloader(folder, policy, limits, authorities=site.client_context(), **options)


async def test_a_file_arrives_whole_and_checked(site: TlsServer, tmp_path: Path) -> None:
    site.serve("/lora.safetensors", DATA)
    told: list[tuple[int, int | None]] = []
    file = RemoteFile(site.url("/lora.safetensors"), hashlib.sha256(DATA).hexdigest())
    path = await downloader(site, tmp_path).fetch(file, lambda done, total: told.append((done, total)))
    assert content(path) == DATA
    assert told[-1] == (len(DATA), len(DATA))
    assert left_in(tmp_path) == [path.name]


async def test_two_downloads_of_one_address_do_not_mix(site: TlsServer, tmp_path: Path) -> None:
    site.serve("/lora.safetensors", DATA)
    fetching = downloader(site, tmp_path)
    files = [RemoteFile(site.url("/lora.safetensors"), token=token) for token in ("a", "b", "c")]
    paths = await asyncio.gather(*map(fetching.fetch, files))
    assert len(set(paths)) == 3
    assert all(content(path) == DATA for path in paths)


async def test_a_broken_download_resumes_where_it_broke_off(site: TlsServer, tmp_path: Path) -> None:
    site.serve("/lora.safetensors", DATA)
    whole = site.routes["/lora.safetensors"]
    starts: list[str] = []

    def cut_twice(asked: Asked) -> Reply:
        reply = whole(asked)
        starts.append(asked.headers.get("range", "none"))
        reply.cut = 100_000 if len(starts) < 3 else None
        return reply

    site.routes["/lora.safetensors"] = cut_twice
    path = await downloader(site, tmp_path).fetch(RemoteFile(site.url("/lora.safetensors")))
    assert content(path) == DATA
    assert starts == ["none", "bytes=100000-", "bytes=200000-"]


async def test_a_part_of_a_file_that_changed_meanwhile_is_thrown_away(site: TlsServer, tmp_path: Path) -> None:
    answers = [Reply(200, DATA, {"ETag": '"v1"'}, cut=100_000), Reply(200, DATA[::-1], {"ETag": '"v2"'})]
    site.routes["/lora.safetensors"] = lambda _: answers.pop(0)
    path = await downloader(site, tmp_path).fetch(RemoteFile(site.url("/lora.safetensors")))
    assert content(path) == DATA[::-1]


async def test_another_hash_than_announced_is_refused_and_nothing_stays(site: TlsServer, tmp_path: Path) -> None:
    site.serve("/lora.safetensors", DATA)
    with pytest.raises(LoraDownloadError, match="not the hash"):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/lora.safetensors"), "0" * 64))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("length", [True, False])
async def test_a_file_above_the_limit_is_refused_and_nothing_stays(
    site: TlsServer, tmp_path: Path, length: bool
) -> None:
    site.routes["/lora.safetensors"] = lambda _: Reply(200, DATA, length=length)
    with pytest.raises(LoraDownloadError, match="more than 1,000 bytes"):
        await downloader(site, tmp_path, max_bytes=1000).fetch(RemoteFile(site.url("/lora.safetensors")))
    assert left_in(tmp_path) == []


async def test_a_slow_download_ends_at_the_time_limit(site: TlsServer, tmp_path: Path) -> None:
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(_: Asked) -> Reply:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result(10)
        return Reply(200, DATA)

    site.routes["/lora.safetensors"] = wait
    with pytest.raises(LoraDownloadError, match=r"did not deliver within 0\.2 s"):
        await downloader(site, tmp_path, seconds=0.2).fetch(RemoteFile(site.url("/lora.safetensors")))
    released.set()


async def test_loopback_is_refused_without_the_operators_word(site: TlsServer, tmp_path: Path) -> None:
    for host in ("localhost", "127.0.0.1"):
        with pytest.raises(LoraSourceError, match="not a public address"):
            await downloader(site, tmp_path, AddressPolicy()).fetch(RemoteFile(site.url("/x", host)))
    assert site.asked == []


async def test_a_redirect_to_a_private_address_is_refused(site: TlsServer, tmp_path: Path) -> None:
    site.redirect("/lora.safetensors", "https://169.254.169.254/latest/meta-data.safetensors")
    with pytest.raises(LoraSourceError, match=r"169\.254\.169\.254, which is not a public"):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/lora.safetensors")))


async def test_a_redirect_to_plain_http_is_refused(site: TlsServer, tmp_path: Path) -> None:
    site.redirect("/lora.safetensors", f"http://localhost:{site.port}/x")
    with pytest.raises(LoraSourceError, match="only https"):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/lora.safetensors")))


async def test_endless_redirects_end(site: TlsServer, tmp_path: Path) -> None:
    site.redirect("/a", site.url("/a"))
    with pytest.raises(LoraDownloadError, match="redirects more than"):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/a")))


async def test_a_host_of_the_deny_list_is_refused_on_a_redirect_too(site: TlsServer, tmp_path: Path) -> None:
    policy = AddressPolicy(deny=("127.0.0.1",), private_networks=LOCAL.private_networks)
    site.redirect("/lora.safetensors", site.url("/x", "127.0.0.1"))
    with pytest.raises(LoraSourceError, match=r"does not fetch from 127\.0\.0\.1"):
        await downloader(site, tmp_path, policy).fetch(RemoteFile(site.url("/lora.safetensors")))


async def test_a_name_with_one_private_address_among_public_ones_is_refused(
    site: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("93.184.216.34", "127.0.0.1")]

    def resolve(*_: object, **__: object) -> list[object]:
        return list(answers)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(LoraSourceError, match=r"127\.0\.0\.1, which is not a public"):
        await downloader(site, tmp_path, AddressPolicy()).fetch(RemoteFile("https://rebind.test/x"))


async def test_a_certificate_for_another_name_is_refused(
    site: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", site.port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    site.serve("/x", DATA)
    hub = await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x", "hub.test")))
    assert content(hub) == DATA
    with pytest.raises(LoraDownloadError, match="certificate"):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x", "other.test")))


async def test_tokens_go_to_the_first_host_only_and_never_into_logs(
    site: TlsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.redirect("/lora.safetensors", site.url("/cdn", "127.0.0.1"))
    site.serve("/cdn", DATA)
    file = RemoteFile(site.url("/lora.safetensors"), token="hf_secret_token")
    await downloader(site, tmp_path).fetch(file)
    assert site.asked[0].headers["authorization"] == "Bearer hf_secret_token"
    assert "authorization" not in site.asked[1].headers
    assert "hf_secret_token" not in repr(file) + caplog.text


@pytest.mark.parametrize(
    ("status", "complaint"), [(401, "a token may be needed"), (403, "gated"), (404, "no such file"), (418, "418")]
)
async def test_a_refusing_site_is_quoted(site: TlsServer, tmp_path: Path, status: int, complaint: str) -> None:
    site.routes["/x"] = lambda _: Reply(status)
    with pytest.raises(LoraDownloadError, match=complaint):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x")))
    assert left_in(tmp_path) == []


async def test_offline_mode_asks_nobody(site: TlsServer, tmp_path: Path) -> None:
    with pytest.raises(LoraSourceError, match="offline"):
        await downloader(site, tmp_path, offline=True).fetch(RemoteFile(site.url("/x")))
    assert site.asked == []


async def test_json_that_is_none_is_refused(site: TlsServer, tmp_path: Path) -> None:
    site.serve_json("/api", "<html>")
    with pytest.raises(LoraDownloadError, match="not JSON"):
        await downloader(site, tmp_path).fetch_json(RemoteFile(site.url("/api")))
    assert await downloader(site, tmp_path).fetch_json(RemoteFile(site.url("/missing"))) is None


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_json_that_a_site_does_not_give_is_none(site: TlsServer, tmp_path: Path, status: int) -> None:
    site.routes["/api"] = lambda _: Reply(status, b"{}")
    assert await downloader(site, tmp_path).fetch_json(RemoteFile(site.url("/api"))) is None


async def test_json_arrives_as_values_and_brings_its_token(site: TlsServer, tmp_path: Path) -> None:
    site.serve_json("/api", '{"a": [1, null, "é"]}')
    assert await downloader(site, tmp_path).fetch_json(RemoteFile(site.url("/api"), token="t")) == {"a": [1, None, "é"]}
    assert site.asked[0].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (Reply(200, b" " * (4 * 2**20) + b"1"), "more than 4 MiB"),
        (Reply(200, b"[" * 200_000), "not JSON"),
        (Reply(200, b'"\xff"'), "not JSON"),
        (Reply(200, b"1", {"Content-Encoding": "gzip"}), "compressed"),
        (Reply(500), "does not answer"),
        (Reply(418), "answered 418"),
        (Reply(302), "redirects to nowhere"),
    ],
)
async def test_json_that_cannot_be_used_is_refused(
    site: TlsServer, tmp_path: Path, reply: Reply, complaint: str
) -> None:
    site.routes["/api"] = lambda _: reply
    with pytest.raises(LoraDownloadError, match=complaint):
        await downloader(site, tmp_path).fetch_json(RemoteFile(site.url("/api")))


async def test_a_compressed_file_is_refused(site: TlsServer, tmp_path: Path) -> None:
    site.routes["/x"] = lambda _: Reply(200, DATA, {"Content-Encoding": "gzip"})
    with pytest.raises(LoraDownloadError, match="compressed body, which was not asked for"):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x")))
    assert site.asked[0].headers["accept-encoding"] == "identity"


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schnell.outbound.downloads._PAUSE_SECONDS", 0)


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"v1"'}])
@pytest.mark.usefixtures("without_pauses")
async def test_without_a_strong_etag_a_broken_download_begins_again(
    site: TlsServer, tmp_path: Path, headers: dict[str, str]
) -> None:
    answers = [Reply(200, DATA, headers, cut=100_000), Reply(200, DATA, headers)]
    site.routes["/x"] = lambda _: answers.pop(0)
    assert content(await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x")))) == DATA
    assert ["range" in asked.headers for asked in site.asked] == [False, False]


@pytest.mark.usefixtures("without_pauses")
async def test_a_part_that_the_server_does_not_know_is_thrown_away(site: TlsServer, tmp_path: Path) -> None:
    answers = [Reply(200, DATA, {"ETag": '"v1"'}, cut=100_000), Reply(416), Reply(200, DATA)]
    site.routes["/x"] = lambda _: answers.pop(0)
    assert content(await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x")))) == DATA
    assert [asked.headers.get("range") for asked in site.asked] == [None, "bytes=100000-", None]


@pytest.mark.usefixtures("without_pauses")
async def test_another_range_than_was_asked_for_is_refused_and_nothing_stays(site: TlsServer, tmp_path: Path) -> None:
    other = Reply(206, DATA[50_000:], {"ETag": '"v1"', "Content-Range": f"bytes 50000-{len(DATA) - 1}/{len(DATA)}"})
    answers = [Reply(200, DATA, {"ETag": '"v1"'}, cut=100_000), other]
    site.routes["/x"] = lambda _: answers.pop(0)
    with pytest.raises(LoraDownloadError, match="another range"):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x")))
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("without_pauses")
async def test_a_busy_server_is_asked_four_times_and_the_part_waits_for_the_next_request(
    site: TlsServer, tmp_path: Path
) -> None:
    answers = [Reply(200, DATA, {"ETag": '"v1"'}, cut=100_000), Reply(429), Reply(500), Reply(503)]
    site.routes["/x"] = lambda _: answers.pop(0)
    with pytest.raises(LoraDownloadError, match="it answered 503; asking again resumes"):
        await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x")))
    assert answers == []
    site.serve("/x", DATA)
    assert content(await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x")))) == DATA
    assert site.asked[-1].headers["range"] == "bytes=100000-"


async def test_what_nobody_came_back_for_is_removed_after_a_day(site: TlsServer, tmp_path: Path) -> None:
    old = time.time() - 24 * 3600 - 60
    for name in ("a.part", "a.note", "b.done", "other.txt"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "young.part").touch()
    site.serve("/x", DATA)
    path = await downloader(site, tmp_path).fetch(RemoteFile(site.url("/x")))
    assert sorted(left_in(tmp_path)) == sorted(["other.txt", "young.part", path.name])


@pytest.fixture(scope="module")
def shared_site() -> Iterator[TlsServer]:
    with run_tls_server() as server:
        yield server


@settings(max_examples=repeats(200), deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=3), st.booleans())
def test_a_file_arrives_whole_wherever_it_breaks_off(
    shared_site: TlsServer, data: bytes, cuts: list[int], length: bool
) -> None:
    shared_site.serve("/x", data)
    whole, left = shared_site.routes["/x"], list(cuts)

    def cut(asked: Asked) -> Reply:
        start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(data):
            return Reply(416)
        reply = whole(asked)
        reply.cut = left.pop(0) if left else None
        # without a length, an answer that breaks off looks whole: only what is not cut may lack it
        reply.length = length or reply.cut is not None
        return reply

    shared_site.routes["/x"] = cut
    told: list[tuple[int, int | None]] = []
    file = RemoteFile(shared_site.url("/x"), hashlib.sha256(data).hexdigest())

    async def fetch(folder: Path) -> bytes:
        path = await downloader(shared_site, folder).fetch(file, lambda done, total: told.append((done, total)))
        assert left_in(folder) == [path.name]
        return path.read_bytes()

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("schnell.outbound.downloads._PAUSE_SECONDS", 0)
        assert asyncio.run(fetch(Path(folder))) == data
    assert {total for _, total in told} <= {len(data), None}
    assert not told or told[-1][0] == len(data)
