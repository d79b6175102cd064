"""A secret in a LoRA's address is nowhere where text is shown or kept."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from client_service import run_service
from mini_loras import lora_bytes
from servers import KEY, body_with
from tls_server import TlsServer, run_tls_server

SECRET = "s3cr3t0f0ne"


@pytest.fixture
def site() -> Iterator[TlsServer]:
    with run_tls_server() as found:
        yield found


def holders(folder: Path) -> list[str]:
    """The files below a folder that hold the secret, in any of the forms that pictures keep text in."""
    forms = [SECRET.encode(), SECRET.encode("utf-16-le"), SECRET.encode("utf-16-be")]
    return [
        str(path) for path in folder.rglob("*") if path.is_file() and any(form in path.read_bytes() for form in forms)
    ]


def draw(client: httpx.Client, address: str, **values: Any) -> dict[str, Any]:
    asked = {"lora_weights": address, "num_inference_steps": 1, "aspect_ratio": "custom", "width": 256, "height": 256}
    answer = client.post("/api/features", json=body_with(**asked | values))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["aiRecord"]
    return found


def test_the_secret_is_in_no_file_picture_list_page_or_log(site: TlsServer, tmp_path: Path) -> None:
    site.serve("/style.safetensors", lora_bytes(1))
    address = site.url(f"/style.safetensors?token={SECRET}#{SECRET}")
    settings = {
        "lora_ca_file": str(site.write_authority(tmp_path / "ca.pem")),
        "lora_private_networks": "127.0.0.0/8,::1/128",
        "log_level": "debug",
    }
    data = tmp_path / "data"
    data.mkdir()
    with run_service(data, **settings) as service, service.client() as client:
        shown = []
        for form in ("png", "webp", "jpg"):
            record = draw(client, address, output_format=form)
            picture = httpx.get(record["temporaryUrl"]).content
            shown += [repr(record), repr(Image.open(io.BytesIO(picture)).info), repr(picture)]
        added = client.post("/api/loras", json={"source": address, "name": "open", "public": True})
        assert added.status_code == 201, added.text
        tag = f"a red apple <lora:{address}:0.5>"
        assert client.post("/sdapi/v1/txt2img", json={"prompt": tag, "steps": 1}).status_code == 200
        other = {"API-KEY": service.make_key()}
        shown += [client.get(path, headers=other).text for path in ("/api/loras", "/sdapi/v1/loras")]
        shown += [client.get(path).text for path in ("/api/features", "/loras", "/gallery", "/api/loras/open")]
        broken = site.url(f"/missing.safetensors?token={SECRET}")
        refused = client.post("/api/features", json=body_with(lora_weights=broken))
        assert refused.status_code == 400
        shown.append(refused.text)
        assert [text for text in shown if SECRET in text] == []
        assert any(SECRET in asked.path for asked in site.asked)
    assert holders(data) == []
    assert KEY not in (data / "stderr.txt").read_text()
