"""Pictures as objects in a bucket of Amazon S3 or a server that speaks its protocol, opened by presigned links."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from schnell.assets.store import CACHE_CONTROL, file_name, list_pictures, shared_name, with_thumbnails
from schnell.daemon_threads import DaemonThreads
from schnell.errors import AssetError, NotFoundError

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_THREADS: Final = 20
_PIECE_BYTES: Final = 2**20
_CONFIG: Final = {
    "signature_version": "s3v4",
    # the bucket in the path: as part of the host's name it needs a DNS name and a certificate for each bucket
    "s3": {"addressing_style": "path"},
    # other servers than Amazon's do not know its newer checksums
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "retries": {"max_attempts": 3, "mode": "standard"},
    "connect_timeout": 5,
    "read_timeout": 30,
    "max_pool_connections": _THREADS,
}


class S3Assets:
    """An `AssetStore` in a bucket. `endpoint` is where this server reaches it, `public_endpoint` where clients do.

    Credentials, and a region that is not given, come from the usual `AWS_*` variables. `prefix` goes before every key.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        public_endpoint: str | None = None,
        region: str | None = None,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = _build_client(endpoint, region)
        # a client of its own for links: a presigned link is signed for one host, and cannot be sent to another
        self._links = _build_client(public_endpoint, region) if public_endpoint else self._client
        self._threads = DaemonThreads(_THREADS, "s3")

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        """Upload a picture, with the headers that the bucket shall answer with. Raises AssetError."""
        await self._call(
            lambda: self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=data,
                ContentType=media_type,
                ContentDisposition=f'inline; filename="{file_name(key)}"',
                CacheControl=CACHE_CONTROL,
            )
        )

    async def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFoundError, AssetError."""
        return await self._call(self._read, key)

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects. Raises AssetError."""
        # one by one: not every S3 server knows the request for several
        for key in with_thumbnails(keys):
            await self._call(lambda name=key: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name))

    async def list_keys(self) -> list[str]:
        """The key of every picture below the prefix, or that has left a thumbnail there. Raises AssetError."""
        return await self._call(self._list)

    def url(self, key: str, seconds: int) -> str:
        """A presigned link (signature version 4) that opens the picture for `seconds`."""
        target = {"Bucket": self._bucket, "Key": self._prefix + key}
        return str(self._links.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    async def put_file(self, name: str, path: Path) -> None:
        """Upload the file, in parts where it is large. Raises AssetError."""
        key = self._prefix + shared_name(name)
        await self._call(lambda: self._client.upload_file(str(path), self._bucket, key))

    async def fetch_file(self, name: str, path: Path) -> bool:
        """Download the file; False where it is not there. Raises AssetError."""
        key, draft = self._prefix + shared_name(name), path.with_name(f".{path.name}.{uuid4().hex}")

        def fetch() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # not `download_file`: it asks for ranges, which not every S3 server gives for files that are smaller
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
                with draft.open("wb") as file:
                    for piece in answer["Body"].iter_chunks(_PIECE_BYTES):
                        file.write(piece)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

        try:
            await self._call(fetch)
        except NotFoundError:
            return False
        return True

    async def remove_file(self, name: str) -> None:
        """Delete the file. Raises AssetError."""
        key = self._prefix + shared_name(name)
        await self._call(lambda: self._client.delete_object(Bucket=self._bucket, Key=key))

    async def close(self) -> None:
        """Close the connections."""
        self._threads.close()
        self._client.close()
        self._links.close()

    async def check(self) -> None:
        """Ask whether the bucket is there. Raises AssetError when it is not, or cannot be reached."""
        try:
            await self._call(lambda: self._client.head_bucket(Bucket=self._bucket))
        except NotFoundError as cause:
            raise AssetError(f"there is no bucket {self._bucket!r}") from cause

    def has_session_credentials(self) -> bool:
        """Whether the credentials are those of a temporary session, with which its links expire, too."""
        credentials = boto3.Session().get_credentials()
        return bool(credentials and credentials.token)

    def _read(self, key: str) -> bytes:
        answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        return bytes(answer["Body"].read())

    def _list(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        names = (row["Key"].removeprefix(self._prefix) for page in pages for row in page.get("Contents", ()))
        return list_pictures(names)

    async def _call(self, action: Callable[..., _Answer], *arguments: str) -> _Answer:
        try:
            # boto3 waits for its answers: in a thread, or the event loop would; in threads of its own, or a bucket that
            # hangs would take those that everything else works in
            return await self._threads.run(action, *arguments)
        except ClientError as cause:
            code = cause.response.get("Error", {}).get("Code", "")
            if code in {"NoSuchKey", "404"}:
                raise NotFoundError("this picture is no longer stored") from cause
            # for the log alone: callers need not know where pictures are stored
            _log.warning("the bucket %r refused: %s", self._bucket, code or cause)
            raise AssetError("the store of pictures refuses; try again in a moment") from cause
        except (BotoCoreError, Boto3Error) as cause:
            _log.warning("the bucket %r cannot be reached: %s", self._bucket, cause)
            raise AssetError("the store of pictures cannot be reached; try again in a moment") from cause


def _build_client(endpoint: str | None, region: str | None) -> Any:
    session = boto3.Session()
    return session.client(
        "s3",
        endpoint_url=endpoint,
        # a region is part of every signature, also for servers that have none: Amazon's default
        region_name=region or session.region_name or "us-east-1",
        config=Config(**_CONFIG),
    )
