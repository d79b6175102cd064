"""The OpenAPI document is true, and no body, however strange, makes the server fail."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from counts import repeats
from fakes import FakeRunner
from schnell.web.dialects import huggingface, model_list, openai, replicate
from schnell.web.dialects.automatic1111 import drawing, lists
from server_process import ServerProcess, serving
from servers import BODY, KEY, Server, run_server

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 4.0, 1.5, 1e300, -1e300, 2**31, 2**32, 2**63, 2**64),
    *("", " ", "1", "7", "1:1", "custom", "0.25", "\0", "\ud800", "x" * 5000, "../../etc/passwd"),
    *("'; DROP TABLE records; --", "{{7*7}}", "\u202e", "webp", "jpg", "16:9", "fofr/flux-black-light"),
    *([], [1], ["a"], {}, {"a": 1}, [[[[]]]]),
]
#: Paths of other services' APIs: these take what their clients send, and say so by examples.
DIALECTS = "^/(v1|sdapi|models/|hf-inference)"
KEYS = [
    *("prompt", "aspect_ratio", "num_inference_steps", "seed", "output_quality", "disable_safety_checker", "go_fast"),
    *("lora_weights", "lora_scale", "megapixels", "num_outputs", "n", "output_format", "width", "height", "extra_lora"),
    "loras",
]


# whether there is anything behind a source, and a LoRA in a file, is nothing that a schema can say
CONFIG = """
[[operations]]
include-name = "POST /api/loras"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-name = "POST /api/loras/inspect"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-name = "POST /api/verify"
request-timeout = 60
checks.positive_data_acceptance.enabled = false
""" + "".join(
    # nor who may have which scope, which moments have passed, and what makes a good password
    f'[[operations]]\ninclude-name = "{each}"\nchecks.positive_data_acceptance.enabled = false\n'
    for each in (
        "POST /api/admin/teams/{team_id}/keys",
        "PATCH /api/admin/keys/{key_id}",
        "POST /api/keys",
        "PATCH /api/keys/{key_id}",
        "POST /api/invites/accept",
        "POST /api/session/password",
        "PUT /api/password",
    )
)

# nor whether a file is a picture; nor whether the LoRA that a prompt names is one
HOOKS = """
import schemathesis

@schemathesis.hook
def filter_body(context, body):
    prompt = body.get("promptObject") if isinstance(body, dict) else None
    named = (prompt.get("lora_weights"), prompt.get("extra_lora")) if isinstance(prompt, dict) else ()
    if isinstance(prompt, dict) and prompt.get("loras"):
        return False
    # a webhook needs `async`, and an address that can be called
    if isinstance(body, dict) and body.get("webhook") is not None:
        return False
    return not any(isinstance(name, str) and name.strip() for name in named)
"""


@pytest.mark.timeout(3600)
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, offline="true") as server:
        run_schemathesis(tmp_path, server, CONFIG, "--exclude-path-regex", DIALECTS, examples=repeats(50))


@pytest.mark.timeout(3600)
async def test_schemathesis_finds_nothing_about_records_and_loras_that_exist(tmp_path: Path) -> None:
    with serving(tmp_path, offline="true") as server:
        async with server.client() as client:
            drawn = [(await client.post("/api/features", json=BODY)).json()["aiRecord"]["uuid"] for _ in range(2)]
        kept, doomed = drawn
        config = (
            f'{CONFIG}\n[parameters]\n"path.record_id" = "{kept}"\n"path.name" = "black-light"\n'
            f'[[operations]]\ninclude-name = "DELETE /api/results/{{record_id}}"\n'
            f'parameters = {{ "path.record_id" = "{doomed}" }}\n'
        )
        only = ("--include-path-regex", "^/api/(results|loras)/")
        await asyncio.to_thread(run_schemathesis, tmp_path, server, config, *only, examples=repeats(100))
        async with server.client() as client:
            assert (await client.get(f"/api/results/{kept}")).status_code == 200
            assert (await client.get(f"/api/results/{doomed}")).status_code == 404


def run_schemathesis(
    folder: Path,
    server: ServerProcess,
    config: str,
    *options: str,
    examples: int,
    phases: str = "examples,coverage,fuzzing",
) -> None:
    (folder / "schemathesis.toml").write_text(config)
    (folder / "lora_hooks.py").write_text(HOOKS)
    command = [
        str(Path(sys.executable).parent / "st"),
        *("--config-file", str(folder / "schemathesis.toml")),
        "run",
        f"{server.url}/openapi.json",
        *("--header", f"API-KEY: {KEY}"),
        *("--max-examples", str(examples)),
        *("--phases", phases),
        *("--suppress-health-check", "all"),
        *("--seed", "7"),
        "--no-color",
        *options,
    ]
    ended = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"HOME": str(folder), "PYTHONPATH": str(folder), "SCHEMATHESIS_HOOKS": "lora_hooks"},
    )
    assert "Server error" not in ended.stdout, ended.stdout[-8000:]
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]


@pytest.mark.timeout(3600)
async def test_no_body_makes_the_server_fail(tmp_path: Path) -> None:
    chance = random.Random(3)
    async with run_server(tmp_path, FakeRunner()) as server:
        for _ in range(repeats(10_000)):
            answer = await _post_something(server, chance)
            assert answer.status_code in {200, 400, 413}, (answer.status_code, answer.text)
            if answer.status_code != 200:
                assert set(answer.json()) <= {"errorCode", "message", "details"}


async def _post_something(server: Server, chance: random.Random) -> Any:
    if chance.random() < 0.3:
        return await server.client.post("/api/features", content=_broken_text(chance))
    body: dict[str, Any] = dict(BODY) | {"dryRun": True}
    prompt: dict[str, Any] = {"prompt": "x", "megapixels": "0.25"}
    for _ in range(chance.randint(1, 4)):
        prompt[chance.choice(KEYS)] = chance.choice(ODD_VALUES)
    body["promptObject"] = prompt
    if chance.random() < 0.3:
        body[chance.choice(["type", "model", "promptObject", "async", "dryRun", "conversationId"])] = chance.choice(
            ODD_VALUES
        )
    return await server.client.post("/api/features", content=json.dumps(body))


def _broken_text(chance: random.Random) -> bytes:
    text = bytearray(
        b'{"type": "IMAGE_GENERATOR", "model": "flux-schnell", "promptObject": {"prompt": "x", "seed": 7}}'
    )
    for _ in range(chance.randint(1, 12)):
        place = chance.randrange(len(text))
        if chance.random() < 0.5:
            text[place] = chance.randrange(256)
        else:
            del text[place : place + chance.randint(1, 20)]
            text = text or bytearray(b"x")
    return re.sub(rb"\s+$", b"", bytes(text))


async def test_the_document_has_no_status_that_the_api_never_sends(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # some dialects answer 422, in their own shapes
            assert re.match(DIALECTS, path) or "422" not in operation["responses"], path


async def test_every_route_of_every_dialect_is_described_and_its_example_is_accepted(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    described = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    routers = (openai, replicate, drawing, lists, huggingface, model_list)
    routes = [route for each in routers for route in each.router.routes if isinstance(route, APIRoute)]
    dialects = {(method, route.path_format) for route in routes for method in route.methods or ()}
    assert len(dialects) > 20
    assert dialects <= described
    for method, path in dialects:
        body = document["paths"][path][method.lower()].get("requestBody")
        for example in body["content"]["application/json"]["examples"].values() if body else ():
            names = {"owner": "schnell", "name": "flux-schnell", "model": "flux-schnell"}
            values = {key: value for key, value in example["value"].items() if not key.startswith("webhook")}
            answer = await server.client.request(method, path.format(**names), json=values)
            assert answer.status_code in {200, 201}, (path, answer.text)


@pytest.mark.timeout(3600)
def test_no_body_of_a_dialect_makes_the_server_fail(tmp_path: Path) -> None:
    options = ("--include-path-regex", DIALECTS, "--checks", "not_a_server_error")
    with serving(tmp_path, offline="true") as server:
        run_schemathesis(tmp_path, server, CONFIG, *options, examples=max(3, repeats(20)), phases="fuzzing")


async def test_the_documents_own_example_is_accepted(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    content = document["paths"]["/api/features"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert (await server.client.post("/api/features", json=example["value"])).status_code == 200


async def test_every_json_body_and_answer_is_described_with_an_example(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            described = [operation.get("requestBody", {}), *operation["responses"].values()]
            for content in (each.get("content", {}).get("application/json") for each in described):
                if content is not None:
                    assert shape_of(content["schema"], document), (method, path)
                    assert "example" in json.dumps(resolved(content, document)), (method, path)


def shape_of(schema: Any, document: Any) -> bool:
    found = resolved(schema, document)
    return bool(found.get("properties") or found.get("anyOf") or found.get("items"))


def resolved(node: Any, document: Any) -> Any:
    """The same with the components put in where they are referred to."""
    if isinstance(node, list):
        return [resolved(each, document) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return resolved(document["components"]["schemas"][node["$ref"].rpartition("/")[2]], document)
    return {name: resolved(each, document) for name, each in node.items()}
