from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import FieldError, InvalidFieldError, MissingFieldError
from schnell.spec import ASPECT_RATIOS, MIN_LORA_SCALE, GenerationSpec, LoraRef, Size
from schnell.web.fields import Fields
from schnell.web.native.feature_schema import FEATURE_BODY
from schnell.web.native.features import parse_prompt_object
from schnell.web.native.records import KNOWN_KEYS

BODY = FEATURE_BODY["requestBody"]["content"]["application/json"]["schema"]
DOCUMENTED = BODY["properties"]["promptObject"]["properties"]
ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([1])


def parse(**values: Any) -> GenerationSpec:
    return parse_prompt_object(Fields({"prompt": "a cat"} | values))


def test_a_prompt_alone_is_one_square_megapixel_in_four_steps() -> None:
    assert parse() == GenerationSpec(
        "a cat", Size(1024, 1024), steps=4, seed=None, num_outputs=1, output_format="webp", output_quality=80
    )


@pytest.mark.parametrize(
    ("values", "name", "value"),
    [
        ({"aspect_ratio": "16:9", "megapixels": "0.25"}, "size", Size(672, 384)),
        ({"megapixels": 0.25}, "size", Size(512, 512)),
        ({"megapixels": 1}, "size", Size(1024, 1024)),
        ({"megapixels": 1.0}, "size", Size(1024, 1024)),
        ({"width": 320, "height": 640}, "size", Size(320, 640)),
        ({"aspect_ratio": "custom", "width": 320.0, "height": 640}, "size", Size(320, 640)),
        ({"aspect_ratio": "1:1", "width": 320, "height": 640}, "size", Size(1024, 1024)),
        ({"seed": 0}, "seed", 0),
        ({"output_quality": 0}, "output_quality", 0),
        ({"num_inference_steps": 1}, "steps", 1),
        ({"n": 3}, "num_outputs", 3),
        ({"samples": 2, "num_outputs": 4}, "num_outputs", 4),
        ({"output_format": "jpg"}, "output_format", "jpeg"),
        ({"go_fast": False}, "go_fast", False),
        ({"disable_safety_checker": True}, "safety_checker", False),
        ({"lora_weights": " fofr/x "}, "loras", (LoraRef("fofr/x", 0.8),)),
        ({"lora_weights": "a", "lora_scale": 0}, "loras", (LoraRef("a", 0.0),)),
        ({"extra_lora": "b", "extra_lora_scale": 3}, "loras", (LoraRef("b", 3.0),)),
        ({"lora_weights": "a", "extra_lora": "b"}, "loras", (LoraRef("a", 0.8), LoraRef("b", 0.8))),
        ({"lora_weights": "  ", "lora_scale": 1}, "loras", ()),
        ({"unknown": object()}, "prompt", "a cat"),
    ],
)
def test_each_key_decides_about_its_part(values: dict[str, Any], name: str, value: object) -> None:
    assert getattr(parse(**values), name) == value


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_a_quarter_of_a_megapixel_halves_both_sides(ratio: str) -> None:
    whole, quarter = parse(aspect_ratio=ratio).size, parse(aspect_ratio=ratio, megapixels="0.25").size
    assert quarter == Size(whole.width // 2, whole.height // 2)


@pytest.mark.parametrize(("values", "missing"), [({"width": 512}, "height"), ({"height": 512}, "width")])
def test_one_side_asks_for_the_other(values: dict[str, Any], missing: str) -> None:
    with pytest.raises(MissingFieldError) as raised:
        parse(**values)
    assert [each.field for each in raised.value.problems] == [missing]


def test_negative_lora_scales_are_for_the_dialects_that_have_them() -> None:
    values = {"prompt": "a cat", "lora_weights": "a", "lora_scale": -0.5}
    with pytest.raises(InvalidFieldError):
        parse_prompt_object(Fields(values))
    assert parse_prompt_object(Fields(values), MIN_LORA_SCALE).loras == (LoraRef("a", -0.5),)


@given(st.dictionaries(st.sampled_from(KNOWN_KEYS), ODD))
def test_any_values_become_a_request_or_name_their_fields(values: dict[str, Any]) -> None:
    wrong: set[str] = set()
    try:
        assert parse_prompt_object(Fields(values)).prompt == values["prompt"]
    except FieldError as error:
        wrong = {each.field for each in error.problems}
    assert wrong <= set(KNOWN_KEYS)


def test_the_described_keys_are_those_that_records_echo() -> None:
    counts = {"n", "numImages", "samples"}
    assert DOCUMENTED.keys() == set(KNOWN_KEYS) - counts


@pytest.mark.parametrize("name", [name for name, schema in DOCUMENTED.items() if schema.get("default") is not None])
def test_a_described_default_is_what_an_absent_key_means(name: str) -> None:
    lora = {"lora_weights": "a", "extra_lora": "b"}
    assert parse(**lora) == parse(**lora, **{name: DOCUMENTED[name]["default"]})


@pytest.mark.parametrize("name", [name for name, schema in DOCUMENTED.items() if "maximum" in schema])
def test_a_described_range_is_the_range(name: str) -> None:
    both = {"width": 512, "height": 512} if name in {"width", "height"} else {}
    low, high = DOCUMENTED[name]["minimum"], DOCUMENTED[name]["maximum"]
    for value in (low, high):
        parse(**both | {name: value})
    for value in (low - 1, high + 1):
        with pytest.raises(InvalidFieldError) as raised:
            parse(**both | {name: value})
        assert [each.field for each in raised.value.problems] == [name]
