import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from schnell.assets.store import CACHE_CONTROL, file_name, is_key
from schnell.errors import AssetError, NotFoundError

_Answer = TypeVar("_Answer")
_CONFIG: Final = {
    "signature_version": "s3v4",
    "s3": {"addressing_style": "path"},
    # other servers than Amazon's do not know its newer checksums
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "retries": {"max_attempts": 3, "mode": "standard"},
    "connect_timeout": 5,
    "read_timeout": 30,
    "max_pool_connections": 20,
}


class S3Assets:
    """Pictures in a bucket of any S3 server. Links are presigned for `public_endpoint`, where clients reach it.

    Credentials and region come from the usual `AWS_*` variables. `prefix` goes before every key.
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
        self._links = _build_client(public_endpoint, region) if public_endpoint else self._client

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        """Upload with the headers that a browser shall see."""
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
        """The object's bytes."""
        return await self._call(self._read, key)

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects, one by one: not every S3 server knows the batch request."""
        for key in keys:
            await self._call(lambda name=key: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name))

    async def list_keys(self) -> list[str]:
        """Every picture below the prefix."""
        return await self._call(self._list)

    def url(self, key: str, seconds: int) -> str:
        """A presigned GET link."""
        target = {"Bucket": self._bucket, "Key": self._prefix + key}
        return str(self._links.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._links.close()

    async def check(self) -> None:
        """Ask for the bucket. Raises AssetError when it cannot be reached or is not there."""
        try:
            await self._call(lambda: self._client.head_bucket(Bucket=self._bucket))
        except NotFoundError as cause:
            raise AssetError(f"there is no bucket {self._bucket!r}") from cause

    def has_session_credentials(self) -> bool:
        """Whether links die with a session: they were signed with temporary credentials."""
        credentials = boto3.Session().get_credentials()
        return bool(credentials and credentials.token)

    def _read(self, key: str) -> bytes:
        answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        return bytes(answer["Body"].read())

    def _list(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        names = (row["Key"].removeprefix(self._prefix) for page in pages for row in page.get("Contents", ()))
        return sorted(name for name in names if is_key(name))

    async def _call(self, action: Callable[..., _Answer], *arguments: str) -> _Answer:
        try:
            return await asyncio.to_thread(action, *arguments)
        except ClientError as cause:
            code = cause.response.get("Error", {}).get("Code", "")
            if code in {"NoSuchKey", "404"}:
                raise NotFoundError("this picture is no longer stored") from cause
            raise AssetError(f"the bucket {self._bucket!r} refused: {code or cause}") from cause
        except BotoCoreError as cause:
            raise AssetError(f"the bucket {self._bucket!r} cannot be reached: {cause}") from cause


def _build_client(endpoint: str | None, region: str | None) -> Any:
    session = boto3.Session()
    return session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region or session.region_name or "us-east-1",
        config=Config(**_CONFIG),
    )
