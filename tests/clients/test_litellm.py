"""LiteLLM's SDK and proxy, where `litellm` is on the path; a soak test installs it.

It is larger than everything else that the tests use, so no group of pyproject.toml has it.
"""

import json
import os
import re
import shutil
import subprocess
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from client_service import LORA, PROMPT, Service
from counts import SOAK
from s3_servers import free_port

PAGE = Path(__file__).parents[2] / "docs" / "clients" / "litellm.md"
SDK = """
import json, sys, litellm
asked = json.loads(sys.argv[1])
try:
    drawn = litellm.image_generation(**asked)
    cost = drawn._hidden_params["additional_headers"]["llm_provider-x-litellm-response-cost"]
    print(json.dumps({"start": drawn.data[0].b64_json[:5], "url": drawn.data[0].url, "cost": float(cost)}))
except litellm.BadRequestError as error:
    print(json.dumps({"refused": str(error)}))
"""
ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of LiteLLM's `python` and `litellm`."""
    if found := shutil.which("litellm"):
        return Path(found).parent
    if not SOAK:
        pytest.skip("LiteLLM is not installed")
    folder = tmp_path_factory.mktemp("litellm")
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", "litellm[proxy]"], check=True)
    return folder / "bin"


@contextmanager
def run_proxy(programs: Path, folder: Path, service: Service) -> Iterator[str]:
    """The proxy with the configuration of the documentation, as pasted; gives its address."""
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    config = config.replace("http://127.0.0.1:8000", service.url).replace("YOUR-PROXY-KEY", "sk-proxy")
    (folder / "config.yaml").write_text(config.replace("YOUR-KEY", service.key))
    port = free_port()
    # nothing of the tests' own packages: LiteLLM needs other versions
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    environment["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    command = [str(programs / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health/liveliness").is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def proxy(programs: Path, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with run_proxy(programs, tmp_path_factory.mktemp("proxy"), service) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="sk-proxy", max_retries=0)


def ask_sdk(programs: Path, service: Service, **asked: Any) -> dict[str, Any]:
    asked |= {"prompt": PROMPT, "api_base": f"{service.url}/v1", "api_key": service.key}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    command = [str(programs / "python"), "-c", SDK, json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_sdk_draws_with_a_lora_by_its_model_id_and_counts_what_the_server_says(
    programs: Path, service: Service
) -> None:
    model = f"openai/flux-schnell-lora:{LORA}@0.8"
    drawn = ask_sdk(programs, service, model=model, size="256x256", extra_body={"seed": 7})
    assert drawn["start"] == "iVBOR"
    assert drawn["cost"] > 0


def test_a_refusal_is_the_sdks_own_exception(programs: Path, service: Service) -> None:
    assert "size" in ask_sdk(programs, service, model="openai/flux-schnell-lora", size="huge")["refused"]


def test_the_proxy_draws_in_both_forms_and_counts_what_the_server_says(proxy: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "flux-schnell", "prompt": PROMPT, "size": "256x256", "style": "vivid"}
    answer = proxy.images.with_raw_response.generate(**asked, response_format="url", extra_body={"seed": 7})
    link = json.loads(answer.content)["data"][0]["url"]
    assert httpx.get(link).content.startswith(b"\x89PNG")
    assert float(answer.headers["x-litellm-response-cost"]) > 0
    (picture,) = proxy.images.generate(**asked, response_format="b64_json", extra_body={"seed": 7}).data or []
    assert str(picture.b64_json).startswith("iVBOR")


def test_the_proxy_passes_on_a_lora_in_the_model_id(proxy: openai.OpenAI, service: Service) -> None:
    proxy.images.generate(model=f"flux-schnell-lora:{LORA}@0.5", prompt=PROMPT, size="256x256")
    with service.client() as client:
        record = client.get("/api/features").json()["aiRecords"][0]
    assert record["model"] == f"flux-schnell-lora:{LORA}@0.5"


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("size", {"model": "flux-schnell", "size": "huge"}),
        ("seed", {"model": "flux-schnell", "extra_body": {"seed": -1}}),
        ("model", {"model": "flux-schnell-lora:no-such-lora"}),
    ],
)
def test_the_proxy_passes_on_which_field_is_wrong(proxy: openai.OpenAI, param: str, values: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        proxy.images.generate(prompt=PROMPT, **values)
    assert raised.value.param == param
