"""Anybody can check a picture over HTTP, and find its credentials again by its mark."""

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import c2pa
import pytest
from PIL import Image

from fakes import FakeRunner, paint
from proof import RECEIPT, icon, resaved
from schnell.provenance.credentials_reading import read_credentials
from schnell.provenance.file_parts import without_credentials
from schnell.provenance.image_file import encode_image
from schnell.provenance.mark import SCHEME
from schnell.provenance.proof import Proof
from schnell.provenance.receipt import Receipt
from schnell.spec import GeneratedImage, Job, JobOutcome, ProgressListener
from servers import Server

LOOKUP = "/.well-known/schnell"


class ProvingRunner(FakeRunner):
    """Marks and signs what it paints, as an engine does, with the server's own key."""

    server: Server

    async def run(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        outcome = await super().run(job, on_progress)
        return replace(outcome, images=tuple(self._prove(job, image) for image in outcome.images))

    def _prove(self, job: Job, image: GeneratedImage) -> GeneratedImage:
        receipt: Receipt = replace(
            RECEIPT,
            prompt=job.spec.prompt,
            seed=image.seed,
            output_format=job.spec.output_format,
            mark=SCHEME if job.spec.watermark else None,
        )
        proof = Proof(marks=True, signer=self.server.services.signer)
        picture, mark = proof.mark(icon(512, (90, 140, 30 + image.seed % 200)), receipt)
        data, manifest = proof.sign(encode_image(picture, receipt), receipt, with_prompt=job.spec.credentials_prompt)
        return replace(paint(job, image.index), data=data, receipt=receipt.to_json(), mark=mark, manifest=manifest)


@pytest.fixture
async def proving(tmp_path: Any) -> Any:
    from servers import run_server

    runner = ProvingRunner()
    async with run_server(tmp_path, runner, verify_rate_limit=None) as server:
        runner.server = server
        yield server


async def drawn(server: Server, **fields: Any) -> tuple[bytes, dict[str, Any]]:
    record = (await server.draw(**fields)).json()["aiRecord"]
    data = (await server.client.get(record["temporaryUrl"])).content
    return data, record["aiRecordDetail"]["responseObject"]["proof"][0]


async def check(server: Server, data: bytes) -> dict[str, Any]:
    answer = await server.client.post("/api/verify", content=data, headers={"API-KEY": ""})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_picture_of_this_server_is_known_again_without_a_key(proving: Server) -> None:
    data, proof = await drawn(proving, prompt="a secret garden", seed=5)
    found = await check(proving, data)
    assert found["credentials"]["state"] == "trusted"
    assert found["mark"]["id"] == proof["mark"]
    assert [each["manifest_id"] for each in found["drawn_here"]] == [proof["credentials"]]
    assert found["drawn_here"][0]["model"] == "schnell-mini"


async def test_a_copy_without_metadata_finds_its_credentials_again_and_no_prompt(proving: Server) -> None:
    data, proof = await drawn(proving, prompt="a secret garden", seed=5)
    file = io.BytesIO()
    resaved(Image.open(io.BytesIO(data)), "JPEG", quality=75).save(file, "JPEG", quality=90)
    found = await check(proving, file.getvalue())
    assert [each["manifest_id"] for each in found["drawn_here"]] == [proof["credentials"]]
    assert "secret" not in str(found)

    value = base64.b64encode(bytes.fromhex(found["mark"]["id"])).decode()
    answer = await proving.client.get(f"{LOOKUP}/matches/byBinding", params={"alg": SCHEME, "value": value})
    [match] = answer.json()["matches"]
    assert match == {"manifestId": proof["credentials"], "endpoint": f"http://127.0.0.1:8000{LOOKUP}"}

    manifest = await proving.client.get(f"{LOOKUP}/manifests/{match['manifestId']}")
    assert manifest.headers["content-type"] == "application/c2pa"
    assert b"secret" not in manifest.content
    reader = c2pa.Reader("image/webp", io.BytesIO(without_credentials(data)), manifest_data=manifest.content)
    assert reader.get_validation_state() == "Valid"


async def test_two_pictures_with_one_mark_are_both_told(proving: Server) -> None:
    first, second = [await drawn(proving, prompt="a secret garden", seed=5) for _ in range(2)]
    assert first[1]["mark"] == second[1]["mark"]
    assert without_credentials(first[0]) == without_credentials(second[0])
    assert len((await check(proving, first[0]))["drawn_here"]) == 2


async def test_a_deleted_picture_is_found_no_more(proving: Server) -> None:
    record = (await proving.draw(prompt="a secret garden", seed=5)).json()["aiRecord"]
    proof = record["aiRecordDetail"]["responseObject"]["proof"][0]
    path = f"{LOOKUP}/manifests/{proof['credentials']}"
    # also while the deletion can be undone
    await proving.client.post("/gallery/delete", json={"records": [record["uuid"]]})
    assert (await proving.client.get(path)).status_code == 404
    await proving.client.post("/gallery/restore", json={"records": [record["uuid"]]})
    assert (await proving.client.get(path)).status_code == 200
    await proving.client.delete(f"/api/results/{record['uuid']}")
    assert (await proving.client.get(path)).status_code == 404


async def test_the_root_that_is_published_makes_pictures_trusted(proving: Server) -> None:
    data, _ = await drawn(proving)
    root = (await proving.client.get(f"{LOOKUP}/root.pem")).text
    assert read_credentials(data, "image/webp", root).state == "trusted"


async def test_a_team_must_be_allowed_to_leave_the_mark_out(proving: Server) -> None:
    refused = await proving.draw(disable_watermark=True)
    assert (refused.status_code, refused.json()["errorCode"]) == (403, "FORBIDDEN")
    teams = (await proving.client.get("/api/admin/teams")).json()
    await proving.client.patch(f"/api/admin/teams/{teams[0]['id']}", json={"mayDisableWatermark": True})
    _, proof = await drawn(proving, disable_watermark=True)
    assert proof["mark"] is None
    assert proof["credentials"]


async def test_a_request_can_keep_its_prompt_out_of_the_credentials(proving: Server) -> None:
    data, _ = await drawn(proving, prompt="a secret garden", hide_prompt=True)
    receipt = read_credentials(data, "image/webp").receipt
    assert receipt is not None
    assert "prompt" not in receipt


@pytest.mark.parametrize("data", [b"", b"hello", b"RIFF1234WEBPVP8 "])
async def test_what_is_no_picture_is_a_plain_refusal(server: Server, data: bytes) -> None:
    answer = await server.client.post("/api/verify", content=data)
    assert answer.status_code in {200, 400}
    if answer.status_code == 400:
        assert answer.json()["errorCode"] == "UNREADABLE_PICTURE"


async def test_a_form_is_refused_with_what_to_send(server: Server) -> None:
    answer = await server.client.post("/api/verify", files={"file": b"x"})
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "UNREADABLE_PICTURE")
    assert "--data-binary" in answer.json()["message"]


async def test_a_file_that_is_too_large_is_refused(serve: Callable[..., Any]) -> None:
    async with serve(verify_max_bytes=2048) as server:
        assert (await server.client.post("/api/verify", content=b"x" * 3000)).status_code == 413


async def test_visitors_are_counted_by_address(serve: Callable[..., Any]) -> None:
    async with serve(verify_rate_limit="2/minute") as server:
        answers = [await server.client.get(f"{LOOKUP}/manifests/none") for _ in range(3)]
        assert [each.status_code for each in answers] == [404, 404, 429]
        assert answers[2].headers["retry-after"]
        # what needs no work is not counted
        assert (await server.client.get(f"{LOOKUP}/root.pem")).status_code == 200


@pytest.mark.parametrize(
    "query", [{"alg": "other", "value": "AAAAAAA="}, {"alg": SCHEME, "value": "AA=="}, {"alg": SCHEME, "value": "%%"}]
)
async def test_a_lookup_that_cannot_be_read_names_the_field(server: Server, query: dict[str, str]) -> None:
    answer = await server.client.get(f"{LOOKUP}/matches/byBinding", params=query)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "INVALID_FIELD")


async def test_a_server_that_does_not_sign_publishes_no_root(serve: Callable[..., Any]) -> None:
    async with serve(credentials=False) as server:
        assert (await server.client.get(f"{LOOKUP}/root.pem")).status_code == 404
        assert (await server.client.get(f"{LOOKUP}/services/supportedAlgorithms")).json()["watermarks"] == [
            {"alg": SCHEME}
        ]


async def test_the_page_needs_no_sign_in(server: Server) -> None:
    answer = await server.client.get("/verify", headers={"API-KEY": "", "Accept": "text/html"})
    assert answer.status_code == 200
    assert "Where does a picture come from?" in answer.text
