"""Pictures in a bucket: SDKs that send their key wherever they follow a link still get them."""

import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import replicate
from openai import OpenAI
from PIL import Image
from replicate.helpers import FileOutput

from client_service import MODEL, PROMPT, Receiver, Service, run_service
from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, free_port, run_nanio
from servers import KEY
from tls_proxy import TlsProxy, run_tls_proxy

ASK: dict[str, Any] = {"prompt": PROMPT, "megapixels": "0.25", "num_inference_steps": 1, "seed": 5}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch, run_nanio(tmp_path_factory.mktemp("bucket")) as server:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield server


@pytest.fixture(scope="module")
def site(bucket: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as clients reach it: by https, with its pictures in the bucket."""
    port = free_port()
    settings = {
        "assets_url": f"s3://{BUCKET}/pictures",
        "s3_endpoint": bucket.endpoint,
        "public_url": f"https://localhost:{port}",
    }
    folder = tmp_path_factory.mktemp("service")
    with run_service(folder, **settings) as inner:
        target = int(inner.url.rpartition(":")[2])
        with run_tls_proxy(port, target, folder) as proxy, pytest.MonkeyPatch.context() as patch:
            trust(patch, proxy)
            yield Service(proxy.url)


def trust(patch: pytest.MonkeyPatch, proxy: TlsProxy) -> None:
    patch.setenv("SSL_CERT_FILE", str(proxy.authority))
    patch.delenv("SSL_CERT_DIR", raising=False)


@pytest.fixture
def client(site: Service) -> Any:
    return replicate.Client(api_token=site.key, base_url=site.url)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_replicates_files_are_links_of_this_server_and_can_be_read(client: Any, site: Service) -> None:
    output = client.run(MODEL, input=ASK | {"num_outputs": 2, "output_format": "png"})
    assert [type(file) for file in output] == [FileOutput, FileOutput]
    assert all(file.url.startswith(f"{site.url}/files/") for file in output)
    assert [opened(file.read()).format for file in output] == ["PNG", "PNG"]


async def test_replicates_async_client_reads_them_too(client: Any) -> None:
    (file,) = await client.async_run(MODEL, input=ASK)
    assert opened(await file.aread()).size == (512, 512)


def test_an_openai_link_opens_with_and_without_a_foreign_authorization(site: Service) -> None:
    with OpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as client:
        answer = client.images.generate(
            model=MODEL, prompt=PROMPT, size="256x256", response_format="url", extra_body={"num_inference_steps": 1}
        )
    link = str((answer.data or [])[0].url)
    assert link.startswith(f"{site.url}/files/")
    for headers in ({}, {"Authorization": f"Bearer {site.key}"}, {"Authorization": "Basic b3RoZXI6b3RoZXI="}):
        file = httpx.get(link, headers=headers)
        assert (file.status_code, file.headers["content-type"]) == (200, "image/png")
        assert opened(file.content).size == (256, 256)
    again = httpx.get(link, headers={"If-None-Match": file.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(link[:-1]).status_code == 403


def test_lists_and_webhooks_hold_links_that_the_sdk_can_read(client: Any, receiver: Receiver) -> None:
    prediction = client.models.predictions.create(
        MODEL, input=ASK, webhook=receiver.url, webhook_events_filter=["completed"]
    )
    (delivery,) = receiver.wait_for(1)
    told = client.predictions.get(prediction.id).output
    listed = next(each for each in client.predictions.list() if each.id == prediction.id)
    for link in (told[0], listed.output[0], delivery.json()["output"][0]):
        assert opened(FileOutput(link, client).read()).format == "WEBP"


def test_a_deleted_picture_is_gone(client: Any, site: Service) -> None:
    prediction = client.models.predictions.create(MODEL, input=ASK, wait=True)
    link = prediction.output[0]
    assert httpx.get(link).status_code == 200
    assert httpx.delete(f"{site.url}/api/results/{prediction.id}", headers={"API-KEY": KEY}).status_code == 204
    assert httpx.get(link).status_code == 404
