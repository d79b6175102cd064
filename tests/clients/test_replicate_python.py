import io
from typing import Any

import pytest
import replicate
from PIL import Image
from replicate.exceptions import ReplicateError
from replicate.helpers import FileOutput
from replicate.webhook import Webhooks, WebhookSigningSecret

from client_service import LORA, MODEL, PROMPT, Receiver, Service

ASK: dict[str, Any] = {"prompt": PROMPT, "megapixels": "0.25", "num_inference_steps": 1, "seed": 5}
LONG = ASK | {"megapixels": "1", "num_inference_steps": 4, "num_outputs": 4}


@pytest.fixture
def client(service: Service) -> Any:
    return replicate.Client(api_token=service.key, base_url=service.url)


def test_run_gives_files_of_the_asked_format(client: Any) -> None:
    output = client.run(MODEL, input=ASK | {"num_outputs": 2, "output_format": "png"})
    assert [type(file) for file in output] == [FileOutput, FileOutput]
    pictures = [Image.open(io.BytesIO(file.read())) for file in output]
    assert [(picture.format, picture.size) for picture in pictures] == [("PNG", (512, 512))] * 2


def test_run_without_file_output_gives_addresses(client: Any) -> None:
    output = client.run(MODEL, input=ASK, use_file_output=False)
    assert [address.partition(",")[0] for address in output] == ["data:image/webp;base64"]


def test_run_without_waiting_asks_until_it_is_done(client: Any) -> None:
    assert client.run(MODEL, input=ASK, wait=False)[0].read()[:4] == b"RIFF"


def test_run_of_a_named_version_is_the_same_picture(client: Any) -> None:
    version = client.models.get(MODEL).latest_version
    assert client.run(f"{MODEL}:{version.id}", input=ASK)[0].read() == client.run(MODEL, input=ASK)[0].read()


def test_a_short_wait_says_starting_so_that_the_client_goes_on_asking(client: Any) -> None:
    prediction = client.models.predictions.create(MODEL, input=LONG, wait=1)
    if prediction.status != "succeeded":
        assert prediction.status == "starting"
    prediction.wait()
    assert len(prediction.output) == 4


def test_a_prediction_is_created_reloaded_and_done(client: Any) -> None:
    prediction = client.models.predictions.create(MODEL, input=ASK | {"num_inference_steps": 2})
    assert prediction.status == "starting"
    assert prediction.output is None
    prediction.wait()
    assert prediction.status == "succeeded"
    assert prediction.input["prompt"] == PROMPT
    assert prediction.metrics["predict_time"] > 0
    assert prediction.progress.percentage == 1.0
    assert (prediction.progress.current, prediction.progress.total) == (2, 2)
    assert "Using seed: 5" in prediction.logs
    assert "Drawn with: schnell-mini" in prediction.logs
    assert client.predictions.get(prediction.id).output == prediction.output
    assert prediction.id in [each.id for each in client.predictions.list()]


def test_a_cancelled_prediction_stops(client: Any) -> None:
    ahead = [client.models.predictions.create(MODEL, input=LONG) for _ in range(2)]
    prediction = client.models.predictions.create(MODEL, input=LONG | {"seed": 6})
    prediction.cancel()
    prediction.reload()
    assert prediction.status == "canceled"
    assert prediction.output is None
    for each in ahead:
        each.cancel()


def test_cancel_after_takes_a_time_and_refuses_what_is_none(service: Service) -> None:
    with service.client() as client:
        body = {"input": ASK}
        path = f"/v1/models/{MODEL}/predictions"
        assert client.post(path, json=body, headers={"Cancel-After": "5m"}).status_code == 201
        refused = client.post(path, json=body, headers={"Cancel-After": "soon"})
    assert refused.status_code == 422
    assert refused.json()["invalid_fields"][0]["field"] == "Cancel-After"


def test_a_lora_changes_the_picture(client: Any) -> None:
    plain = client.run(MODEL, input=ASK)[0].read()
    assert client.run(MODEL, input=ASK | {"lora_weights": LORA, "lora_scale": 1.5})[0].read() != plain


@pytest.mark.parametrize(("ratio", "size"), [("21:9", (672, 288)), ("3:4", (448, 576)), ("16:9", (672, 384))])
def test_every_shape_of_the_model_is_drawn(client: Any, ratio: str, size: tuple[int, int]) -> None:
    prediction = client.models.predictions.create(MODEL, input=ASK | {"aspect_ratio": ratio}, wait=True)
    assert Image.open(io.BytesIO(FileOutput(prediction.output[0], client).read())).size == size
    assert prediction.input == ASK | {"aspect_ratio": ratio}


async def test_the_async_client_runs_creates_and_cancels(client: Any) -> None:
    output = await client.async_run(MODEL, input=ASK)
    assert (await output[0].aread())[:4] == b"RIFF"
    prediction = await client.models.predictions.async_create(MODEL, input=LONG)
    await prediction.async_cancel()
    await prediction.async_reload()
    assert prediction.status == "canceled"


def test_models_are_listed_and_found(client: Any) -> None:
    assert MODEL in [f"{model.owner}/{model.name}" for model in client.models.list()]
    model = client.models.get(MODEL)
    schema = model.latest_version.openapi_schema["components"]["schemas"]
    assert schema["Input"]["properties"]["lora_scale"]["maximum"] == 3
    assert schema["Output"]["type"] == "array"
    assert [version.id for version in model.versions.list()] == [model.latest_version.id]


@pytest.mark.parametrize(
    ("status", "detail", "ask"),
    [
        (422, "input.num_outputs", {"input": ASK | {"num_outputs": 9}}),
        (422, "input.prompt", {"input": {}}),
        (404, "is not served here", {"model": "someone/else", "input": ASK}),
        (422, "webhook", {"input": ASK, "webhook": "ftp://example.com"}),
    ],
)
def test_a_wrong_request_raises_problem_details(client: Any, status: int, detail: str, ask: dict[str, Any]) -> None:
    with pytest.raises(ReplicateError) as raised:
        client.models.predictions.create(**{"model": MODEL} | ask)
    assert raised.value.status == status
    assert detail in (raised.value.detail or "")


def test_a_wrong_token_and_an_empty_budget_raise_problem_details(service: Service) -> None:
    wrong = replicate.Client(api_token="wrong", base_url=service.url)
    with pytest.raises(ReplicateError) as raised:
        wrong.models.get(MODEL)
    assert raised.value.status == 401
    poor = replicate.Client(api_token=service.make_key(team={"creditLimit": 1}), base_url=service.url)
    with pytest.raises(ReplicateError) as raised:
        poor.run(MODEL, input=ASK)
    assert raised.value.status == 402


def test_a_webhook_comes_in_order_and_its_signature_holds(client: Any, receiver: Receiver) -> None:
    receiver.refusals = 1
    events = ["start", "output", "logs", "completed"]
    prediction = client.models.predictions.create(
        MODEL, input=ASK | {"num_inference_steps": 4}, webhook=receiver.url, webhook_events_filter=["completed"]
    )
    (delivery,) = receiver.wait_for(1)
    secret = client.webhooks.default.secret()
    Webhooks.validate(headers=delivery.headers, body=delivery.body, secret=secret)
    with pytest.raises(ValueError, match=r"[Ss]ignature"):
        Webhooks.validate(headers=delivery.headers, body=delivery.body + " ", secret=secret)
    with pytest.raises(ValueError, match=r"[Ss]ignature"):
        Webhooks.validate(
            headers=delivery.headers, body=delivery.body, secret=WebhookSigningSecret(key="whsec_d3Jvbmc=")
        )
    receiver.deliveries.clear()
    client.models.predictions.create(MODEL, input=LONG, webhook=receiver.url, webhook_events_filter=events)
    assert delivery.json()["id"] == prediction.id
    while len([each for each in receiver.deliveries if each.json()["status"] == "succeeded"]) < 2:
        receiver.wait_for(len(receiver.deliveries) + 1)
    start, *logs, output, completed = [each.json() for each in receiver.deliveries]
    assert (start["status"], start["output"], start["completed_at"]) == ("processing", None, None)
    assert [each["status"] for each in logs] == ["processing"] * len(logs)
    assert all("%|" in each["logs"] for each in logs)
    assert len(output["output"]) == len(completed["output"]) == 4
    assert completed["metrics"]["predict_time"] > 0
