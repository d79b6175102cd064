"""The server behind Debian's nginx with deploy/nginx.conf: what is large, long, signed, or streamed passes."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import httpx
import pytest

from counts import SOAK
from mini_loras import lora_bytes
from nginx_proxy import NGINX, run_nginx
from server_process import serving
from servers import BODY, KEY

HEADERS = {"API-KEY": KEY}
#: Above nginx's own megabyte in any case.
UPLOAD_BYTES = 300 * 2**20 if SOAK else 12 * 2**20
#: Longer than nginx's own minute of patience in a soak.
STREAM_SECONDS = 180.0 if SOAK else 1.0


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    if NGINX is None:
        pytest.skip("nginx is not installed here (apt-get install nginx)")
    folder = tmp_path_factory.mktemp("nginx")
    with (
        serving(folder / "data", STREAM_SECONDS / 4, rate_limit="100/second") as server,
        run_nginx(folder / "proxy", int(server.url.rpartition(":")[2])) as client,
    ):
        yield client


def padded(size: int) -> bytes:
    """A LoRA whose file is as large as this: what follows its header is one more tensor of zeros."""
    data = lora_bytes(1)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    used = len(data) - 8 - length
    extra = (size - used) // 4
    name = "lora_unet_single_blocks_99_linear1.alpha"
    header[name] = {"dtype": "F32", "shape": [extra], "data_offsets": [used, used + 4 * extra]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :] + bytes(4 * extra)


def test_an_upload_as_large_as_a_lora_arrives_whole(proxied: httpx.Client) -> None:
    data = padded(UPLOAD_BYTES)
    answer = proxied.post("/api/loras/inspect", headers=HEADERS, files={"file": ("large.safetensors", data)})
    assert answer.status_code == 200, answer.text[:300]
    # read to its end
    assert answer.json()["report"]["bytes"] == len(data)


def test_events_arrive_one_by_one_for_as_long_as_it_takes(proxied: httpx.Client) -> None:
    started = monotonic()
    with proxied.stream("POST", "/api/features?isStreaming=true", headers=HEADERS, json=BODY) as stream:
        moments = [monotonic() - started for line in stream.iter_lines() if line.startswith("data:")]
    assert len(moments) > 3
    # the first is there long before the last: nothing has kept them together
    assert moments[0] < moments[-1] - 0.5 * STREAM_SECONDS


def test_a_signed_link_opens_and_a_changed_one_does_not(proxied: httpx.Client) -> None:
    record = proxied.post("/api/features", headers=HEADERS, json=BODY).json()["aiRecord"]
    link = httpx.URL(record["temporaryUrl"]).raw_path.decode()
    picture = proxied.get(link)
    assert picture.status_code == 200
    assert picture.headers["content-type"] == "image/webp"
    assert len(hashlib.sha256(picture.content).hexdigest()) == 64
    assert proxied.get(link[:-1] + ("0" if link[-1] != "0" else "1")).status_code == 403


def test_pages_and_scripts_come_through(proxied: httpx.Client) -> None:
    page = proxied.get("/sign-in")
    assert page.status_code == 200
    script = page.text.partition('src="')[2].partition('"')[0]
    assert proxied.get(script).status_code == 200


def test_a_long_head_is_the_servers_to_refuse(proxied: httpx.Client) -> None:
    answer = proxied.get("/healthz", headers={"X-Long": "x" * 20_000})
    assert answer.status_code == 200


def test_the_file_has_a_server_for_plain_http_that_leads_to_tls() -> None:
    text = (Path(__file__).parents[3] / "deploy" / "nginx.conf").read_text()
    assert "return 301 https://$host$request_uri" in text
