import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from schnell.spec import ASPECT_RATIOS
from servers import BODY, KEY, Server

DOCUMENT_KEYS = {
    "": ["aiRecord"],
    "aiRecord": [
        "uuid",
        "userId",
        "teamId",
        "teamUser",
        "model",
        "type",
        "metadata",
        "rating",
        "feedback",
        "conversationId",
        "status",
        "createdAt",
        "aiRecordDetail",
        "additionalData",
        "temporaryUrl",
    ],
    "teamUser": [
        "teamId",
        "userId",
        "userName",
        "userAvatar",
        "status",
        "role",
        "creditLimit",
        "usedCredit",
        "createdAt",
        "createdBy",
        "updatedAt",
        "updatedBy",
    ],
    "aiRecordDetail": ["promptObject", "resultObject", "responseObject"],
}


async def test_the_answer_has_exactly_the_documents_keys_in_its_order(server: Server) -> None:
    answer = (await server.draw()).json()
    record = answer["aiRecord"]
    assert list(answer) == DOCUMENT_KEYS[""]
    assert list(record) == DOCUMENT_KEYS["aiRecord"]
    assert list(record["teamUser"]) == DOCUMENT_KEYS["teamUser"]
    assert list(record["aiRecordDetail"]) == DOCUMENT_KEYS["aiRecordDetail"]


async def test_the_documents_own_body_without_its_lora_draws_a_webp(server: Server) -> None:
    body = {
        "type": "IMAGE_GENERATOR",
        "model": "black-forest-labs/flux-schnell-lora",
        "promptObject": {
            "prompt": "Futuristic cityscape at night, neon lights, cyberpunk style",
            "aspect_ratio": "1:1",
            "num_inference_steps": 4,
            "go_fast": True,
            "megapixels": "1",
        },
    }
    answer = await server.client.post("/api/features", json=body)
    record = answer.json()["aiRecord"]
    assert record["status"] == "SUCCESS"
    detail = record["aiRecordDetail"]
    # the document shows short names first
    assert list(detail["promptObject"]) == ["prompt", "go_fast", "megapixels", "aspect_ratio", "num_inference_steps"]
    assert detail["promptObject"] == body["promptObject"]
    assert list(detail["responseObject"]) == [
        "seed",
        "seeds",
        "width",
        "height",
        "temporaryUrls",
        "timings",
        "loras",
        "warnings",
        "flagged",
        "proof",
        "servedModel",
    ]
    picture = Image.open(io.BytesIO((await server.client.get(record["temporaryUrl"])).content))
    assert (picture.format, picture.size) == ("WEBP", (1024, 1024))


@pytest.mark.parametrize("ratio", list(ASPECT_RATIOS))
@pytest.mark.parametrize("megapixels", ["1", 0.25])
async def test_every_ratio_and_resolution_has_its_exact_size(server: Server, ratio: str, megapixels: Any) -> None:
    await server.draw(aspect_ratio=ratio, megapixels=megapixels)
    width, height = ASPECT_RATIOS[ratio]
    share = 1 if megapixels in {"1", 1} else 2
    assert server.runner.jobs[-1].spec.size == (width // share, height // share)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({"aspect_ratio": "custom", "width": 512, "height": 288}, (512, 288)),
        ({"width": 512.0, "height": 288}, (512, 288)),
        ({"aspect_ratio": "1:1", "width": 512, "height": 288}, (512, 512)),
        ({"aspect_ratio": None, "width": None, "height": None}, (512, 512)),
    ],
)
async def test_custom_sizes(server: Server, values: dict[str, Any], size: tuple[int, int]) -> None:
    answer = await server.draw(**values)
    assert answer.status_code == 200, answer.text
    assert server.runner.jobs[-1].spec.size == size


@pytest.mark.parametrize("name", ["n", "num_outputs", "numImages", "samples"])
async def test_several_outputs_have_following_seeds_and_their_own_pictures(server: Server, name: str) -> None:
    record = (await server.draw(**{name: 3}, seed=4294967295)).json()["aiRecord"]
    detail = record["aiRecordDetail"]
    assert detail["responseObject"]["seeds"] == [4294967295, 0, 1]
    assert len(set(detail["resultObject"])) == 3
    assert record["temporaryUrl"].partition("?")[0].endswith(detail["resultObject"][0])
    pictures = [await server.client.get(url) for url in detail["responseObject"]["temporaryUrls"]]
    assert len({picture.content for picture in pictures}) == 3


async def test_a_random_seed_is_told_and_repeats_the_picture(server: Server) -> None:
    first = (await server.draw()).json()["aiRecord"]
    seed = first["aiRecordDetail"]["responseObject"]["seed"]
    again = (await server.draw(seed=seed)).json()["aiRecord"]
    pictures = [(await server.client.get(record["temporaryUrl"])).content for record in (first, again)]
    assert pictures[0] == pictures[1]
    assert (
        server.runner.jobs[0].seed
        != (await server.draw()).json()["aiRecord"]["aiRecordDetail"]["responseObject"]["seed"]
    )


@pytest.mark.parametrize(
    ("name", "ending", "kind"),
    [("webp", "webp", "WEBP"), ("jpg", "jpg", "JPEG"), ("jpeg", "jpg", "JPEG"), ("png", "png", "PNG")],
)
async def test_every_format_is_delivered_as_asked(server: Server, name: str, ending: str, kind: str) -> None:
    record = (await server.draw(output_format=name)).json()["aiRecord"]
    assert record["aiRecordDetail"]["resultObject"][0].endswith(f".{ending}")
    answer = await server.client.get(record["temporaryUrl"])
    assert Image.open(io.BytesIO(answer.content)).format == kind
    assert answer.headers["content-type"] == f"image/{kind.lower()}"


async def test_seed_zero_is_a_seed_and_nulls_are_absent(server: Server) -> None:
    answer = await server.draw(seed=0, num_inference_steps=None, output_quality=None, go_fast=None, lora_weights=None)
    assert answer.status_code == 200
    spec = server.runner.jobs[-1].spec
    assert (spec.seed, spec.steps, spec.output_quality, spec.go_fast) == (0, 4, 80, True)
    assert set(answer.json()["aiRecord"]["aiRecordDetail"]["promptObject"]) == {"seed", "prompt", "megapixels"}


async def test_unknown_keys_are_ignored_and_not_echoed(server: Server) -> None:
    answer = await server.draw(style="vivid", language="English", mode={"any": ["thing"]})
    assert answer.status_code == 200
    assert set(answer.json()["aiRecord"]["aiRecordDetail"]["promptObject"]) == {"prompt", "megapixels"}


async def test_a_finished_picture_is_charged_by_the_table(server: Server) -> None:
    record = (await server.draw(num_outputs=2)).json()["aiRecord"]
    assert record["teamUser"]["usedCredit"] == 800
    assert record["teamUser"]["creditLimit"] == 100_000_000


@pytest.mark.parametrize(
    "headers",
    [
        {"API-KEY": KEY},
        {"api-key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {KEY}"},
        {"Authorization": f"Token {KEY}"},
        {"x-key": KEY},
    ],
)
async def test_every_form_of_a_key_is_accepted(server: Server, headers: dict[str, str]) -> None:
    server.client.headers.pop("API-KEY")
    assert (await server.client.post("/api/features", json=BODY, headers=headers)).status_code == 200


async def test_basic_auth_takes_the_key_as_password(server: Server) -> None:
    server.client.headers.pop("API-KEY")
    for credentials in (("anyone", KEY), (KEY, "")):
        assert (await server.client.post("/api/features", json=BODY, auth=credentials)).status_code == 200


async def test_a_dry_run_tells_cost_and_wait_and_does_nothing(server: Server) -> None:
    answer = await server.client.post("/api/features", json=BODY | {"dryRun": True})
    assert answer.json() == {
        "dryRun": {
            "cost": 400,
            "width": 512,
            "height": 512,
            "numOutputs": 1,
            "queuePosition": 0,
            "expectedSeconds": 0.0,
            "warnings": [],
        }
    }
    assert server.runner.jobs == []
    assert (await server.client.get("/api/features")).json() == {"aiRecords": [], "nextCursor": None}
    assert (await server.client.get("/api/session")).json()["usedCredit"] == 0


async def test_models_of_the_feature_are_listed(server: Server) -> None:
    answer = (await server.client.get("/models?feature=IMAGE_GENERATOR")).json()
    assert "black-forest-labs/flux-schnell-lora" in [model["modelId"] for model in answer["models"]]
    assert (await server.client.get("/models?feature=CHAT")).json()["models"] == []


@pytest.mark.parametrize("reference", ["nobody/nothing", "no-such-lora", "https://127.0.0.1/x.safetensors", "../x"])
async def test_a_lora_that_cannot_be_had_is_refused_and_never_ignored(server: Server, reference: str) -> None:
    answer = await server.draw(lora_weights=reference)
    assert answer.status_code in {400, 404}
    assert "lora_weights" in answer.text
    assert server.runner.jobs == []


def test_importing_the_web_side_does_not_import_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, schnell.web.app, schnell.generations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
