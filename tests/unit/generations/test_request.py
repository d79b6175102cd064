import pytest

from schnell.generations.request import show_prompt_object


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("https://x.org/a.safetensors?token=secret", "https://x.org/a.safetensors"),
        ("https://me:secret@x.org/a.safetensors", "https://x.org/a.safetensors"),
        ("https://x.org/a.safetensors#secret", "https://x.org/a.safetensors"),
        ("civitai.com/models/1?modelVersionId=2&token=secret", "civitai.com/models/1?modelVersionId=2"),
        ("fofr/flux-black-light", "fofr/flux-black-light"),
    ],
)
def test_no_secret_of_an_address_is_kept_wherever_a_lora_is_named(sent: str, kept: str) -> None:
    def named(text: str) -> dict[str, object]:
        listed = [text, {"path": text, "scale": 0.5}, {"name": text}]
        return {"prompt": "a?b#c", "lora_weights": text, "extra_lora": text, "lora_scale": 1, "loras": listed}

    assert show_prompt_object(named(sent)) == named(kept)
