"""Files that servers share through either store: whole or not at all, and never taken for pictures."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, free_port, run_nanio
from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.assets.s3 import S3Assets
from schnell.assets.store import AssetStore
from schnell.errors import AssetError

NAME = "a" * 64 + ".safetensors"


@pytest.fixture(params=["local", "s3"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AssetStore]:
    if request.param == "local":
        yield LocalAssets(tmp_path / "assets", LinkSigner("secret"), "http://pictures.example")
        return
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    with run_nanio(tmp_path / "bucket") as bucket:
        found = S3Assets(BUCKET, "some/prefix", endpoint=bucket.endpoint)
        yield found
        await found.close()


async def test_a_file_comes_back_whole_and_goes(store: AssetStore, tmp_path: Path) -> None:
    data = secrets.token_bytes(3_000_000)
    (tmp_path / "mine").write_bytes(data)
    target = tmp_path / "new" / "theirs"
    assert not await store.fetch_file(NAME, target)
    for _ in range(2):
        await store.put_file(NAME, tmp_path / "mine")
    assert await store.fetch_file(NAME, target)
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == ["theirs"]
    assert await store.list_keys() == []
    for _ in range(2):
        await store.remove_file(NAME)
    assert not await store.fetch_file(NAME, tmp_path / "again")


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b.safetensors", "", ".safetensors", "a.b.c", "x"])
async def test_no_name_leads_out_of_the_store(store: AssetStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a file's name"):
        await store.put_file(name, tmp_path / "mine")


async def test_a_bucket_that_is_away_says_so_without_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    port = free_port()
    nowhere = S3Assets("my-bucket", endpoint=f"http://127.0.0.1:{port}")
    (tmp_path / "mine").write_bytes(b"x")
    for action in (nowhere.put_file(NAME, tmp_path / "mine"), nowhere.fetch_file(NAME, tmp_path / "theirs")):
        with pytest.raises(AssetError, match="the store of pictures") as told:
            await action
        assert "my-bucket" not in told.value.message
        assert str(port) not in told.value.message
