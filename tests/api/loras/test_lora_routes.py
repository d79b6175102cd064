import asyncio
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx
import pytest

from mini_loras import lora_bytes, trainer_tar, write_lora
from servers import Server, body_with, key_for
from tls_server import run_tls_server


async def upload(
    server: Server, data: bytes, *, name: str | None = None, file_name: str = "My Style.safetensors", **fields: str
) -> Any:
    form = ({"name": name} if name else {}) | fields
    return await server.client.post("/api/loras", files={"file": (file_name, data)}, data=form)


async def own_loras(server: Server, headers: dict[str, str] | None = None) -> list[str]:
    found = (await server.client.get("/api/loras", headers=headers or {})).json()
    return [lora["name"] for lora in found["loras"] if lora["source"] != "bundled"]


async def test_an_uploaded_lora_is_listed_shown_used_and_removed(server: Server) -> None:
    added = await upload(server, lora_bytes(1, trigger_words="TOK"))
    assert added.status_code == 201
    lora = added.json()["lora"]
    assert (lora["name"], lora["rank"], lora["triggerWords"], lora["width"]) == ("my-style", 2, ["TOK"], 256)
    assert lora["public"] is False
    assert await own_loras(server) == ["my-style"]
    shown = await server.client.get(f"/api/loras/{lora['id']}")
    assert shown.json() == {"lora": lora}
    drawn = await server.draw(lora_weights="My-Style", lora_scale=0.5)
    assert drawn.status_code == 200
    use = server.runner.jobs[-1].adapters[0]
    assert (use.name, use.sha256, use.scale) == ("My-Style", lora["sha256"], 0.5)
    assert use.path.is_file()
    assert (await server.client.delete("/api/loras/my-style")).status_code == 204
    assert await own_loras(server) == []
    assert (await server.draw(lora_weights="my-style")).status_code == 400


async def preview_of(server: Server, name: str, **options: Any) -> httpx.Response:
    async with asyncio.timeout(20):
        for pause in repeat(0.02):
            found = await server.client.get(f"/api/loras/{name}/preview", **options)
            if found.status_code == 200:
                break
            await asyncio.sleep(pause)
    return found


async def test_adding_a_lora_draws_its_preview(server: Server) -> None:
    await upload(server, lora_bytes(1, trigger_words="TOK"), name="style", triggerWords="own words")
    shown = await preview_of(server, "style")
    assert shown.headers["content-type"] == "image/webp"
    [job] = server.runner.jobs
    assert job.adapters[0].scale == 1.0
    assert "TOK" not in job.spec.prompt
    assert "own words" not in job.spec.prompt
    assert shown.content[8:12] == b"WEBP"


async def test_replicates_tar_can_be_uploaded(server: Server) -> None:
    added = await upload(server, trainer_tar(lora_bytes(2), "PIXEL"), name="pixel", file_name="trained_model.tar")
    assert added.json()["lora"]["triggerWords"] == ["PIXEL"]


async def test_a_file_that_is_not_understood_is_refused_with_the_reason(server: Server) -> None:
    refused = await upload(server, lora_bytes(1, width=3072))
    assert refused.status_code == 400
    assert refused.json() == {
        "errorCode": "INVALID_LORA",
        "message": "this LoRA does not fit the model: it is made for width 3072 (FLUX.1), this model is 256 wide",
    }
    pickle = await upload(server, b"PK\x03\x04" + b"0" * 100, file_name="lora.pt")
    assert "never pickle" in pickle.json()["message"]
    assert await own_loras(server) == []


async def test_a_taken_name_is_a_conflict(server: Server) -> None:
    await upload(server, lora_bytes(1), name="style")
    again = await upload(server, lora_bytes(2), name="Style")
    assert (again.status_code, again.json()["errorCode"]) == (409, "CONFLICT")


async def test_teams_do_not_see_each_others_loras(server: Server) -> None:
    await upload(server, lora_bytes(1), name="secret-style")
    other = await key_for(server, "others")
    assert await own_loras(server, other) == []
    assert (await server.client.get("/api/loras/secret-style", headers=other)).status_code == 404
    assert (await server.client.delete("/api/loras/secret-style", headers=other)).status_code == 404
    drawn = await server.client.post("/api/features", json=body_with(lora_weights="secret-style"), headers=other)
    assert drawn.status_code == 400
    assert (await server.client.get("/api/loras/secret-style/preview", headers=other)).status_code == 404


async def test_a_key_without_the_scope_may_look_but_not_add(server: Server) -> None:
    reader = await key_for(server, "readers", "read")
    assert (await server.client.get("/api/loras", headers=reader)).status_code == 200
    added = await server.client.post("/api/loras", json={"source": "owner/name"}, headers=reader)
    assert added.status_code == 403
    assert (await server.client.get("/api/loras", headers={"API-KEY": "wrong"})).status_code == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "source"), ({"source": 5}, "source"), ({"source": "http://x.test/a.safetensors"}, "source")],
)
async def test_a_bad_body_names_its_field(server: Server, body: dict[str, Any], field: str) -> None:
    refused = await server.client.post("/api/loras", json=body)
    assert refused.status_code == 400
    assert f'"field": "{field}"' in refused.json()["details"]


async def test_an_upload_without_a_file_names_the_field(server: Server) -> None:
    refused = await server.client.post("/api/loras", files={"other": ("a", b"b")})
    assert refused.json()["errorCode"] == "MISSING_REQUIRED_FIELDS"


async def test_a_private_address_is_refused_by_name(server: Server) -> None:
    refused = await server.draw(lora_weights="https://127.0.0.1/a.safetensors")
    assert (refused.status_code, refused.json()["errorCode"]) == (400, "LORA_SOURCE_REFUSED")
    assert "lora_weights 'https://127.0.0.1/a.safetensors': 127.0.0.1 leads to" in refused.json()["message"]


async def test_an_uploaded_file_is_inspected_without_being_kept(server: Server) -> None:
    found = await server.client.post("/api/loras/inspect", files={"file": ("x", lora_bytes(1, width=3072))})
    report = found.json()["report"]
    assert (report["layout"], report["madeFor"], report["matchedKeys"]) == ("diffusers LoRA", "FLUX.1", 2)
    assert await own_loras(server) == []


async def test_an_upload_above_the_limit_is_refused(serve: Callable[..., Any]) -> None:
    async with serve(lora_max_bytes=2000) as server:
        refused = await upload(server, b"0" * 100_000)
        assert (refused.status_code, refused.json()["errorCode"]) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("name", ["%00", "a%00b", "..%2F..%2Fetc", "%20", "x" * 300, "%F0%9F%8D%8E"])
async def test_a_name_that_no_lora_can_have_is_not_found(server: Server, name: str) -> None:
    for method in ("GET", "DELETE"):
        answer = await server.client.request(method, f"/api/loras/{name}")
        assert (answer.status_code, answer.json()["errorCode"]) == (404, "NOT_FOUND")


async def test_an_upload_without_a_name_is_called_after_its_file(server: Server) -> None:
    added = await upload(server, lora_bytes(1), file_name="../Ünïcode & Style (v2).safetensors")
    assert added.status_code == 201
    assert added.json()["lora"]["name"] == "unicode-style-v2"


async def test_a_large_json_body_is_refused_although_uploads_may_be_large(server: Server) -> None:
    refused = await server.client.post("/api/loras", json={"source": "x" * 100_000})
    assert (refused.status_code, refused.json()["errorCode"]) == (413, "BODY_TOO_LARGE")


async def test_an_outside_lora_is_fetched_for_the_first_picture_and_kept_for_the_next(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    with run_tls_server() as site:
        site.serve("/a/style.safetensors", lora_bytes(7))
        settings = {
            "lora_private_networks": ("127.0.0.0/8", "::1/128"),
            "lora_ca_file": site.write_authority(tmp_path / "ca.pem"),
        }
        async with serve(**settings) as server:
            for _ in range(2):
                drawn = await server.draw(extra_lora=site.url("/a/style.safetensors"))
                assert drawn.status_code == 200
        assert len(site.asked) == 1


async def test_what_the_caller_says_of_a_lora_goes_before_its_file(server: Server) -> None:
    form = {"name": "style", "triggerWords": "TOK, in neon", "licence": "cc0-1.0"}
    added = await server.client.post(
        "/api/loras", files={"file": ("x.safetensors", lora_bytes(1, trigger_words="FILE"))}, data=form
    )
    lora = added.json()["lora"]
    assert (lora["triggerWords"], lora["licence"]) == (["TOK", "in neon"], "cc0-1.0")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("triggerWords", "TOK"),
        ("triggerWords", [1]),
        ("triggerWords", ["x"] * 17),
        ("triggerWords", ["a\nb"]),
        ("licence", "x" * 201),
        ("licence", 7),
        ("public", "yes"),
        ("name", ["style"]),
    ],
)
async def test_wrong_labels_are_refused_by_name(server: Server, field: str, value: Any) -> None:
    refused = await server.client.post("/api/loras", json={"source": "owner/name", field: value})
    assert (refused.status_code, refused.json()["errorCode"]) == (400, "INVALID_FIELD")
    assert f'"field": "{field}"' in refused.json()["details"]


async def test_an_operators_key_adds_and_removes_public_loras_and_another_key_does_not(server: Server) -> None:
    other = await key_for(server, "others")
    for headers, status in ((other, 403), ({}, 201)):
        files = {"file": ("shared.safetensors", lora_bytes(1))}
        added = await server.client.post("/api/loras", files=files, data={"public": "true"}, headers=headers)
        assert added.status_code == status, added.text
    assert added.json()["lora"]["public"] is True
    assert await own_loras(server, other) == ["shared"]
    drawn = await server.client.post("/api/features", json=body_with(lora_weights="shared"), headers=other)
    assert drawn.status_code == 200
    await preview_of(server, "shared", headers=other)
    refused = await server.client.delete("/api/loras/shared?public=true", headers=other)
    assert refused.status_code == 403
    assert (await server.client.delete("/api/loras/shared?public=true")).status_code == 204
    assert await own_loras(server, other) == []


async def test_a_lora_that_was_added_where_nothing_draws_gets_its_picture_at_the_next_start(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    async with serve() as server:
        file = write_lora(tmp_path / "style.safetensors")
        await server.services.loras.add_path(file, owner="", created_by="cli")
        assert (await server.client.get("/api/loras/style/preview")).status_code == 404
    async with serve() as server, asyncio.timeout(20):
        while (await server.client.get("/api/loras/style/preview")).status_code != 200:  # noqa: ASYNC110 - as it is drawn
            await asyncio.sleep(0.05)


async def test_a_lora_that_is_removed_while_jobs_wait_with_it_is_still_there_for_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upload(server, lora_bytes(1), name="style")
    await preview_of(server, "style")
    server.runner.gate = asyncio.Event()
    body = body_with(lora_weights="style") | {"async": True}
    uuid = (await server.client.post("/api/features", json=body)).json()["aiRecord"]["uuid"]
    running = server.services.admission.find(uuid)
    assert running is not None
    async with asyncio.timeout(10):
        while server.runner.jobs[-1].id != uuid:  # noqa: ASYNC110 - what is waited for is not ours to signal
            await asyncio.sleep(0.01)
    monkeypatch.setattr("schnell.loras.files._GRACE_SECONDS", -1)
    assert (await server.client.delete("/api/loras/style")).status_code == 204
    await server.services.loras.remove_unwanted()
    path = server.runner.jobs[-1].adapters[0].path
    assert path.is_file()
    server.runner.gate.set()
    assert (await running.ended()).status == "SUCCESS"
    assert await server.services.loras.remove_unwanted() == 1
    assert not path.exists()
