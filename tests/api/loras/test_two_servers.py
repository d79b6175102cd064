"""Two servers as documented (PostgreSQL, S3, a data folder each): what was added on one is drawn by the other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from databases import new_postgres_url
from mini_loras import lora_bytes
from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, run_nanio
from server_process import ServerProcess, serving
from servers import body_with

Servers = tuple[ServerProcess, ServerProcess]


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Servers]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    async with AsyncExitStack() as running:
        bucket = running.enter_context(run_nanio(tmp_path / "bucket"))
        shared = {"database_url": new_postgres_url(), "assets_url": f"s3://{BUCKET}/x", "link_secrets": "x" * 32}
        started = [serving(tmp_path / name, 0.3, **shared, s3_endpoint=bucket.endpoint) for name in "ab"]
        found = [running.enter_context(each) for each in started]
        yield found[0], found[1]


async def test_a_lora_that_was_added_on_one_is_drawn_by_the_other_and_gone_once_removed(
    two: Servers, tmp_path: Path
) -> None:
    async with two[0].client() as a, two[1].client() as b:
        files = {"file": ("style.safetensors", lora_bytes(5))}
        added = await a.post("/api/loras", files=files, data={"name": "style"})
        assert added.status_code == 201, added.text
        answers = await asyncio.gather(
            *(b.post("/api/features", json=body_with(lora_weights="style")) for _ in range(4))
        )
        assert [each.status_code for each in answers] == [200] * 4
        [used] = answers[0].json()["aiRecord"]["aiRecordDetail"]["responseObject"]["loras"]
        assert used["sha256"] == added.json()["lora"]["sha256"]
        shared = [path for path in (tmp_path / "bucket").rglob("*") if "shared-files" in str(path) and path.is_file()]
        assert shared
        assert (await b.delete("/api/loras/style")).status_code == 204
        assert (await a.post("/api/features", json=body_with(lora_weights="style"))).status_code == 400
        assert not [path for path in shared if path.exists()]


async def test_a_generation_is_cancelled_and_deleted_through_the_other(two: Servers) -> None:
    async with two[0].client() as a, two[1].client() as b:
        body = body_with(num_inference_steps=4) | {"async": True}
        first, second = [(await a.post("/api/features", json=body)).json()["aiRecord"]["uuid"] for _ in range(2)]
        cancelled = await b.post(f"/api/results/{first}/cancel")
        assert cancelled.json()["aiRecord"]["status"] == "FAILURE"
        assert (await b.delete(f"/api/results/{second}")).status_code == 204
        for client in (a, b):
            assert (await client.get(f"/api/results/{second}")).status_code == 404
        assert (await a.get("/api/session")).json()["usedCredit"] == 0
