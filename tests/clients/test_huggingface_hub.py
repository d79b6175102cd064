import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from client_service import LORA, MODEL, PROMPT, Service


@pytest.fixture
def client(service: Service) -> InferenceClient:
    return InferenceClient(model=f"{service.url}/models/{MODEL}", token=service.key)


def test_text_to_image_gives_the_asked_size(client: InferenceClient) -> None:
    picture = client.text_to_image(PROMPT, width=256, height=320, num_inference_steps=1, seed=3, guidance_scale=3.5)
    assert picture.size == (256, 320)
    assert picture.format == "PNG"


def test_parameters_beyond_the_clients_own_reach_the_model(client: InferenceClient) -> None:
    plain, styled = (
        client.text_to_image(PROMPT, width=256, height=256, num_inference_steps=1, seed=3, extra_body=more)
        for more in ({}, {"lora_weights": LORA, "lora_scale": 1.5})
    )
    assert plain.tobytes() != styled.tobytes()


@pytest.mark.parametrize(
    ("model", "token", "steps", "status"),
    [(MODEL, None, 9, 422), ("someone/else", None, 1, 404), (MODEL, "wrong", 1, 401)],
)
def test_a_refusal_is_the_clients_own_error(
    service: Service, model: str, token: str | None, steps: int, status: int
) -> None:
    client = InferenceClient(model=f"{service.url}/models/{model}", token=token or service.key)
    with pytest.raises(HfHubHTTPError) as raised:
        client.text_to_image(PROMPT, num_inference_steps=steps)
    assert raised.value.response.status_code == status
    assert raised.value.response.json()["error"]
