from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import FieldError, InvalidFieldError, MissingFieldError
from schnell.spec import ASPECT_RATIOS, MIN_LORA_SCALE, GenerationSpec, LoraRef, Size
from schnell.web.native.feature_schema import FEATURE_BODY
from schnell.web.native.prompt_object import KNOWN_KEYS, PromptRules, parse_prompt_object

BODY = FEATURE_BODY["requestBody"]["content"]["application/json"]["schema"]
DOCUMENTED = BODY["properties"]["promptObject"]["properties"]
ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([1])


def parse(**values: Any) -> GenerationSpec:
    return parse_prompt_object({"prompt": "a cat"} | values).spec


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


@pytest.mark.parametrize(
    ("values", "size", "warnings"),
    [
        ({}, Size(1024, 1024), ("width is 1024: it was not given", "height is 1024: it was not given")),
        ({"width": 512}, Size(512, 1024), ("height is 1024: it was not given",)),
        ({"width": None, "height": 256}, Size(1024, 256), ("width is 1024: it was not given",)),
        ({"width": 512, "height": 256}, Size(512, 256), ()),
    ],
)
def test_a_custom_side_that_is_not_given_is_1024(values: dict[str, Any], size: Size, warnings: tuple[str, ...]) -> None:
    parsed = parse_prompt_object({"prompt": "a cat", "aspect_ratio": "custom"} | values)
    assert (parsed.spec.size, parsed.warnings) == (size, warnings)


@pytest.mark.parametrize(
    ("rounding", "width", "drawn"),
    [("nearest", 1000, 1008), ("nearest", 999, 992), ("down", 1007, 992), ("down", 1440, 1440), ("nearest", 264, 272)],
)
def test_a_side_off_the_grid_is_brought_onto_it_with_a_warning(rounding: Any, width: int, drawn: int) -> None:
    values = {"prompt": "a cat", "width": width, "height": 512}
    parsed = parse_prompt_object(values, PromptRules(side_step=16, rounding=rounding))
    assert parsed.spec.size == Size(drawn, 512)
    told = (f"width {width} became {drawn}: sides are multiples of 16",)
    assert parsed.warnings == (told if width != drawn else ())
    assert parsed.echo["width"] == width


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("aspectratio", "did you mean aspect_ratio?"),
        ("aspectRatio", "did you mean aspect_ratio?"),
        ("steps", "did you mean num_inference_steps?"),
        ("lora_weight", "did you mean lora_weights?"),
        ("loraScale", "did you mean lora_scale?"),
        ("quality", "did you mean output_quality?"),
        ("seeds", "did you mean seed?"),
        ("conversationId", None),
        ("x" * 100_000, None),
    ],
)
def test_a_name_that_is_no_field_is_ignored_and_named(name: str, meant: str | None) -> None:
    parsed = parse_prompt_object({"prompt": "a cat", name: "7"})
    assert parsed.spec == GenerationSpec("a cat")
    assert len(parsed.warnings) == 1
    assert parsed.warnings[0].startswith(f"{name[:60]} is not a field")
    assert len(parsed.warnings[0]) < 120
    assert meant is None or parsed.warnings[0].endswith(meant)
    assert name not in parsed.echo


def test_very_many_names_are_counted_not_listed() -> None:
    parsed = parse_prompt_object({"prompt": "a cat"} | {f"field {i}": 1 for i in range(5000)})
    assert len(parsed.warnings) == 11
    assert parsed.warnings[-1] == "4990 more are not fields; they were ignored"


def test_loras_may_come_as_a_list_besides_the_two_fields() -> None:
    values = {
        "lora_weights": "a",
        "loras": [{"path": "b/c", "scale": 0.5}, {"name": "d"}, "e", {"path": "a", "scale": 0.25, "type": "style"}],
    }
    parsed = parse_prompt_object({"prompt": "a cat"} | values)
    assert parsed.spec.loras == (LoraRef("a", 1.05), LoraRef("b/c", 0.5), LoraRef("d", 0.8), LoraRef("e", 0.8))
    assert [lora.place for lora in parsed.spec.loras] == [
        "lora_weights",
        "loras.0.path",
        "loras.1.name",
        "loras.2.path",
    ]
    assert parsed.warnings == ("loras.3 has type: only path, name and scale are read",)
    assert parsed.echo["loras"][3] == {"path": "a", "scale": 0.25}


@pytest.mark.parametrize(
    ("loras", "field"),
    [
        ("a", "loras"),
        ({"path": "a"}, "loras"),
        ([7], "loras.0"),
        ([["a"]], "loras.0"),
        ([{}], "loras.0.path"),
        (["a", {"path": 7}], "loras.1.path"),
        ([{"name": "a", "scale": 4}], "loras.0.scale"),
        ([{"name": "a", "scale": "1"}], "loras.0.scale"),
        ([{"path": "a"}] * 9, "loras"),
        ([{"path": "a"}] * 200_000, "loras"),
    ],
)
def test_a_wrong_list_of_loras_is_refused_by_its_place(loras: Any, field: str) -> None:
    with pytest.raises(FieldError) as raised:
        parse_prompt_object({"prompt": "a cat", "loras": loras})
    assert [each.field for each in raised.value.problems] == [field]


def test_an_empty_row_of_loras_names_none() -> None:
    parsed = parse_prompt_object({"prompt": "a cat", "loras": [{"path": " "}, "", {"name": "a"}]})
    assert parsed.spec.loras == (LoraRef("a", 0.8),)
    assert parsed.warnings == tuple(f"loras.{index}.path is empty: it names no LoRA" for index in (0, 1))


def test_a_request_names_eight_loras_at_most_wherever_they_stand() -> None:
    listed = [{"name": f"lora-{index}"} for index in range(7)]
    assert len(parse(lora_weights="a", loras=listed).loras) == 8
    with pytest.raises(InvalidFieldError) as raised:
        parse(lora_weights="a", extra_lora="b", loras=listed)
    assert [each.field for each in raised.value.problems] == ["loras"]


def test_negative_lora_scales_are_for_the_dialects_that_have_them() -> None:
    values = {"prompt": "a cat", "lora_weights": "a", "lora_scale": -0.5}
    with pytest.raises(InvalidFieldError):
        parse_prompt_object(values)
    assert parse_prompt_object(values, PromptRules(MIN_LORA_SCALE)).spec.loras == (LoraRef("a", -0.5),)


@given(st.dictionaries(st.sampled_from(KNOWN_KEYS), ODD))
def test_any_values_become_a_request_or_name_their_fields(values: dict[str, Any]) -> None:
    wrong: set[str] = set()
    try:
        assert parse_prompt_object(values).spec.prompt == values["prompt"]
    except FieldError as error:
        wrong = {each.field.partition(".")[0] for each in error.problems}
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
