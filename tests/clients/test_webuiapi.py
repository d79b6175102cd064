from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import webuiapi

from client_service import LORA, PROMPT, Service

ASK: dict[str, Any] = {"prompt": PROMPT, "seed": 9, "width": 256, "height": 256, "steps": 1, "cfg_scale": 1}


@pytest.fixture
def api(service: Service) -> Any:
    return webuiapi.WebUIApi(baseurl=f"{service.url}/sdapi/v1", username="anyone", password=service.key)


def test_a_lora_tag_takes_part_and_leaves_the_prompt(api: Any, service: Service) -> None:
    plain = api.txt2img(**ASK)
    styled = api.txt2img(**ASK | {"prompt": f"{PROMPT} <lora:{LORA}:1.5>"})
    assert plain.image.size == (256, 256)
    assert plain.image.tobytes() != styled.image.tobytes()
    with service.client() as client:
        record = client.get("/api/features", params={"limit": 1}).json()["aiRecords"][0]
    assert record["aiRecordDetail"]["promptObject"]["prompt"] == PROMPT
    assert [used["name"] for used in record["aiRecordDetail"]["responseObject"]["loras"]] == [LORA]


def test_scale_zero_is_the_picture_without_the_lora(api: Any) -> None:
    tagged = api.txt2img(**ASK | {"prompt": f"{PROMPT} <lora:{LORA}:0>"})
    assert tagged.image.tobytes() == api.txt2img(**ASK).image.tobytes()


def test_values_of_other_models_are_clamped_and_noted(api: Any) -> None:
    found = api.txt2img(**ASK | {"steps": 22, "cfg_scale": 4.5, "width": 300, "negative_prompt": "blurry"})
    assert found.image.size == (304, 256)
    assert found.info["steps"] == 4
    noted = {note.partition(" ")[0] for note in found.info["notes"]}
    assert {"width", "steps", "negative_prompt", "cfg_scale"} <= noted
    assert found.info["sd_model_name"] == "schnell-mini"


def test_info_says_what_was_drawn(api: Any) -> None:
    found = api.txt2img(**ASK | {"batch_size": 2})
    assert found.info["all_seeds"] == [9, 10]
    assert len(found.images) == 2
    assert "Seed: 9" in found.info["infotexts"][0]
    assert (found.info["width"], found.info["height"]) == (256, 256)


def test_the_lists_that_clients_ask_for_first_are_there(api: Any) -> None:
    names = api.util_get_model_names()
    assert {"black-forest-labs/flux-schnell-lora", f"flux-schnell-lora:{LORA}"} <= set(names)
    assert api.get_samplers()[0]["name"] == "Euler"
    assert LORA in [lora["name"] for lora in api.get_loras()]
    assert api.get_options()["sd_model_checkpoint"]
    assert api.get_progress()["progress"] == 0
    for ask in (
        api.get_schedulers,
        api.get_upscalers,
        api.get_sd_vae,
        api.get_latent_upscale_modes,
        api.get_embeddings,
        api.get_scripts,
        api.get_memory,
        api.get_cmd_flags,
        api.get_face_restorers,
        api.get_prompt_styles,
        api.refresh_checkpoints,
        api.interrupt,
    ):
        ask()
    api.set_options({"sd_model_checkpoint": "black-forest-labs/flux-schnell-lora"})


def test_progress_shows_the_steps_and_an_interrupt_ends_them_for_nothing(service: Service) -> None:
    key = service.make_key()
    api = webuiapi.WebUIApi(baseurl=f"{service.url}/sdapi/v1", username="anyone", password=key)
    large = ASK | {"width": 1440, "height": 1440, "steps": 4, "batch_size": 4}
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(api.txt2img, **large)
        shares = [0.0]
        while not shares[-1] and not drawing.done():
            progress = api.get_progress()
            shares.append(progress["progress"])
        assert 0 < shares[-1] <= 1
        assert progress["state"]["job_count"] == 1
        assert progress["state"]["sampling_step"] == round(shares[-1] * 4)
        api.interrupt()
        with pytest.raises(RuntimeError) as raised:
            drawing.result()
    assert raised.value.args[0] == 409
    assert api.get_progress()["progress"] == 0
    with httpx.Client(base_url=service.url, headers={"API-KEY": key}) as client:
        assert client.get("/api/session").json()["usedCredit"] == 0


def test_an_unknown_lora_and_a_wrong_password_are_refused(api: Any, service: Service) -> None:
    with pytest.raises(RuntimeError) as raised:
        api.txt2img(**ASK | {"prompt": "apple <lora:nobody-has-this>"})
    assert raised.value.args[0] == 422
    stranger = webuiapi.WebUIApi(baseurl=f"{service.url}/sdapi/v1", username="anyone", password="wrong")
    with pytest.raises(RuntimeError) as raised:
        stranger.txt2img(**ASK)
    assert raised.value.args[0] == 401
