"""Fetch one file over https: bounded in size and time, resumed where it broke off, checked against its hash."""

import asyncio
import hashlib
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import httpx

from schnell.errors import DiskError, LoraDownloadError, LoraSourceError
from schnell.outbound.addresses import AddressPolicy, CheckedTransport
from schnell.outbound.room import DownloadRoom, FetchBudget

#: Called with the bytes that have come so far, and with the file's size where the server says it (else None).
DownloadListener = Callable[[int, int | None], None]

_MAX_REDIRECTS: Final = 6
#: JSON is read into memory, from sites that are not ours.
_MAX_JSON_BYTES: Final = 4 * 2**20
_ATTEMPTS: Final = 4
#: Before the second attempt; doubled before each further one.
_PAUSE_SECONDS: Final = 0.3
#: Written in one go, in a thread: a disk may take its time, and the event loop has none.
_BLOCK_BYTES: Final = 2**20
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """The most bytes a file may have, the most seconds its download may take, and the seconds without any byte."""

    max_bytes: int = 4 * 2**30
    seconds: float = 600
    silence_seconds: float = 30


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch. `sha256` is its hash in hexadecimal, where its site has announced one.

    `token` is sent as a bearer token to the URL's own host only, never to where it redirects.
    """

    url: str
    sha256: str | None = None
    token: str | None = field(default=None, repr=False)


class Downloader:
    """Fetches files into `folder`. What breaks off stays there for an hour, to be resumed, within `budget`.

    `offline` refuses every file; `authorities` are the certificate authorities to trust, other than the usual ones.
    """

    def __init__(  # noqa: PLR0913 - as the operator sets them, one for each
        self,
        folder: Path,
        policy: AddressPolicy,
        limits: DownloadLimits | None = None,
        *,
        offline: bool = False,
        authorities: ssl.SSLContext | None = None,
        budget: FetchBudget | None = None,
    ) -> None:
        self._folder = folder
        self.room = DownloadRoom(folder, budget or FetchBudget())
        self._policy = policy
        self._limits = limits or DownloadLimits()
        self._offline = offline
        self._authorities = authorities or httpx.create_ssl_context()
        # one lock for each URL: two downloads of one would write into the same part. A lock is gone with its last user
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def check_address(self, url: str) -> None:
        """Refuse what needs no look at the network to be refused.

        Raises:
            LoraSourceError: offline mode, or an address whose host is refused.
        """
        if self._offline:
            raise LoraSourceError("this server is offline: it serves the LoRAs of its library only")
        self._policy.check_host(read_url(url).host)

    async def fetch(self, file: RemoteFile, on_progress: DownloadListener | None = None, team: str = "") -> Path:
        """The path of the file, complete and checked against its hash. The caller removes it from `room`.

        It counts as `team`'s until then.

        Raises:
            LoraSourceError: offline mode, or an address that is refused.
            LoraDownloadError: it could not be fetched whole, is too large, took too long, or has another hash.
            DiskError: the disk has no room for it, or takes no writes.
        """
        self.check_address(file.url)
        lock = self._locks.setdefault(file.url, asyncio.Lock())
        async with lock:
            partial = self._folder / f"{hashlib.sha256(file.url.encode()).hexdigest()}.part"
            self.room.open(partial, team)
            try:
                async with asyncio.timeout(self._limits.seconds):
                    await self._fetch_with_retries(file, partial, on_progress)
                whole = await asyncio.to_thread(_check_and_rename, partial, file)
                self.room.rename(partial, whole)
            except TimeoutError:
                raise LoraDownloadError(
                    f"{_host(file.url)} did not deliver within {self._limits.seconds:g} s; asking again resumes"
                ) from None
            except OSError as error:
                raise DiskError(f"the download cannot be kept: {error.strerror or type(error).__name__}") from error
            finally:
                self.room.close(partial)
            return whole

    async def fetch_json(self, file: RemoteFile) -> Any:
        """A JSON document of at most 4 MiB, or None where the site refuses or lacks it (401, 403, 404).

        Raises:
            LoraSourceError: offline mode, or an address that is refused.
            LoraDownloadError: no answer in time, or one that is no JSON.
        """
        try:
            async with asyncio.timeout(2 * self._limits.silence_seconds):
                body = await self._read_small(file)
            return None if body is None else json.loads(body)
        except (ValueError, RecursionError) as error:
            raise LoraDownloadError(f"{_host(file.url)} answered with something that is not JSON") from error
        except (TimeoutError, httpx.TransportError) as error:
            raise LoraDownloadError(f"{_host(file.url)} does not answer") from error

    async def _read_small(self, file: RemoteFile) -> bytes | None:
        async with self._open(file, {}) as response:
            if response.status_code in {401, 403, 404}:
                return None
            _check_status(response)
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > _MAX_JSON_BYTES:
                    raise LoraDownloadError(f"{_host(file.url)} answered with more than 4 MiB")
        return bytes(body)

    async def _fetch_with_retries(self, file: RemoteFile, partial: Path, on_progress: DownloadListener | None) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                await self._fetch_rest(file, partial, on_progress)
            except (LoraDownloadError, DiskError):
                # an answer that will not change: another attempt would get the same
                _discard(partial)
                raise
            # anyio raises AttributeError where the other side hangs up while the connection is being made
            except (httpx.TransportError, AttributeError) as error:
                if attempt + 1 == _ATTEMPTS:
                    raise LoraDownloadError(f"{_host(file.url)}: {error}; asking again resumes") from error
                await asyncio.sleep(_PAUSE_SECONDS * 2**attempt)
            else:
                return

    async def _fetch_rest(self, file: RemoteFile, partial: Path, on_progress: DownloadListener | None) -> None:
        headers = _resume_headers(partial)
        async with self._open(file, headers) as response:
            # range not satisfiable: the part is as long as the file, or longer. The next attempt begins at zero
            if response.status_code == 416:
                _discard(partial)
                raise httpx.ReadError("the part that is here does not fit")
            _check_status(response)
            start = _range_start(response, headers)
            total = _total(response, start)
            self._check_size(total or 0)
            self.room.grow(partial, total or 0)
            # before the bytes: a part without its ETag is never resumed
            _save_etag(partial, response)
            received = await self._write(partial, response, start, total, on_progress)
        if total is not None and received != total:
            raise httpx.ReadError("the connection ended early")

    async def _write(
        self,
        partial: Path,
        response: httpx.Response,
        start: int,
        total: int | None,
        on_progress: DownloadListener | None,
    ) -> int:
        """Write the body behind the first `start` bytes of a part; how long the part is then."""
        received, block = start, bytearray()
        with partial.open("r+b" if start else "wb") as sink:
            sink.seek(start)
            sink.truncate()
            try:
                async for piece in response.aiter_raw():
                    received += len(piece)
                    # counted, too: a server need not tell the size, or the truth about it
                    self._check_size(received)
                    block += piece
                    if len(block) >= _BLOCK_BYTES:
                        self.room.grow(partial, received)
                        await asyncio.to_thread(sink.write, block)
                        block = bytearray()
                    if on_progress is not None:
                        on_progress(received, total)
            finally:
                # also of a connection that broke: the next attempt goes on from there
                sink.write(block)
        return received

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise LoraDownloadError(
                f"the file has more than {self._limits.max_bytes:,} bytes, the most that is fetched"
            )

    @asynccontextmanager
    async def _open(self, file: RemoteFile, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """The answer at the end of the redirects, each of which the transport checks as it does the first."""
        self.check_address(file.url)
        url = read_url(file.url)
        first_host = url.host
        async with self._client() as client, _readable_redirects(url):
            for _ in range(_MAX_REDIRECTS):
                # not compressed: sizes, ranges and hashes are those of the file itself, and a small body cannot unpack
                # into one beyond the limit
                sent = dict(headers) | {"Accept-Encoding": "identity", "User-Agent": "schnell"}
                # sites redirect to storage hosts of other companies, which must not see the token
                if file.token and url.host == first_host:
                    sent["Authorization"] = f"Bearer {file.token}"
                async with client.stream("GET", url, headers=sent) as response:
                    if response.status_code not in _REDIRECTS:
                        yield response
                        return
                    url = _redirected(url, response)
        raise LoraDownloadError(f"{first_host} redirects more than {_MAX_REDIRECTS} times")

    def _client(self) -> httpx.AsyncClient:
        # one connection a request: httpx tells pooled connections apart by address, which is a number here, and two
        # hosts may share it. Proxies of the environment are not used: they would resolve the name themselves
        inner = httpx.AsyncHTTPTransport(
            verify=self._authorities, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        return httpx.AsyncClient(
            transport=CheckedTransport(self._policy, inner),
            timeout=self._limits.silence_seconds,
            follow_redirects=False,
            trust_env=False,
        )


@asynccontextmanager
async def _readable_redirects(url: httpx.URL) -> AsyncIterator[None]:
    try:
        yield
    except httpx.InvalidURL as error:  # httpx reads where a redirect leads although it is not to follow it
        raise LoraSourceError(f"{url.host} redirects to something that is no https address") from error


def read_url(text: str) -> httpx.URL:
    """An address that can be called.

    Raises:
        LoraSourceError: it cannot be read, has no host, or is not https.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:  # `ipaddress` raises ValueErrors for hosts such as 0177.0.0.1
        raise LoraSourceError("this is not an address that can be read") from error
    if url.scheme != "https" or not url.host:
        raise LoraSourceError(f"only https addresses are fetched, not {url.scheme[:20]}://{url.host[:100]}")
    return url


def _redirected(url: httpx.URL, response: httpx.Response) -> httpx.URL:
    try:
        return read_url(str(url.join(response.headers["location"])))
    except (KeyError, ValueError, httpx.InvalidURL) as error:
        raise LoraDownloadError(f"{url.host} redirects to nowhere") from error
    except LoraSourceError as error:
        raise LoraSourceError(f"{url.host} redirects to an address that is not called: {error.message}") from error


def _resume_headers(partial: Path) -> dict[str, str]:
    """Ask for the rest of a part, and for the whole file if it has changed since (RFC 9110, If-Range)."""
    if not partial.exists() or not partial.stat().st_size:
        return {}
    try:
        etag = json.loads(_etag_path(partial).read_text("utf-8"))["etag"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    # a weak ETag stands for files that mean the same, not for the same bytes
    if not isinstance(etag, str) or etag.startswith("W/"):
        return {}
    return {"Range": f"bytes={partial.stat().st_size}-", "If-Range": etag}


def _range_start(response: httpx.Response, asked: Mapping[str, str]) -> int:
    if response.status_code != 206:
        return 0
    start = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    if asked.get("Range") != f"bytes={start}-":
        raise LoraDownloadError("the server answered with another range than was asked for")
    return int(start)


def _total(response: httpx.Response, start: int) -> int | None:
    length = response.headers.get("content-length", "")
    # fewer than 19 digits fit into 64 bits
    return start + int(length) if length.isdigit() and len(length) < 19 else None


def _check_status(response: httpx.Response) -> None:
    status, host = response.status_code, response.url.host
    if response.headers.get("content-encoding", "identity") != "identity":
        raise LoraDownloadError(f"{host} answered with a compressed body, which was not asked for")
    if status in {401, 403}:
        raise LoraDownloadError(
            f"{host} refuses access ({status}): the file is private or gated; a token may be needed"
        )
    if status in {404, 410}:
        raise LoraDownloadError(f"{host} has no such file ({status})")
    # what may be better at the next attempt, as a broken connection
    if status == 429 or status >= 500:
        raise httpx.RemoteProtocolError(f"it answered {status}")
    if status not in {200, 206}:
        raise LoraDownloadError(f"{host} answered {status}")


def _check_and_rename(partial: Path, file: RemoteFile) -> Path:
    _etag_path(partial).unlink(missing_ok=True)
    with partial.open("rb") as source:
        found = hashlib.file_digest(source, "sha256").hexdigest()
    if file.sha256 is not None and found != file.sha256.lower():
        partial.unlink()
        raise LoraDownloadError(f"the file from {_host(file.url)} has not the hash that was announced; it was removed")
    # a name of its own: the next download of this URL may begin while the caller still reads this file
    return partial.replace(partial.with_name(f"{secrets.token_hex(8)}.done"))


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _etag_path(partial).unlink(missing_ok=True)


def _save_etag(partial: Path, response: httpx.Response) -> None:
    _etag_path(partial).write_text(json.dumps({"etag": response.headers.get("etag")}))


def _etag_path(partial: Path) -> Path:
    return partial.with_suffix(".note")


def _host(url: str) -> str:
    return httpx.URL(url).host
