import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import InvalidFieldError
from schnell.spec import MAX_LORA_SCALE, MIN_LORA_SCALE, LoraRef
from schnell.web.dialects.automatic1111.drawing import note_ignored_fields
from schnell.web.dialects.automatic1111.reading import read_lora_tags, read_numbers, without_text
from schnell.web.dialects.translation import GENEROUS
from schnell.web.fields import Fields
from schnell.web.native.prompt_object import parse_prompt_object


@pytest.mark.parametrize(
    ("prompt", "rest", "loras"),
    [
        ("a cat", "a cat", ()),
        ("a  cat", "a  cat", ()),
        ("a cat <lora:glow:0.5>", "a cat", (LoraRef("glow", 0.5),)),
        ("<lora:glow>a cat", "a cat", (LoraRef("glow", 1.0),)),
        ("a <LORA:glow:-.5> cat", "a cat", (LoraRef("glow", -0.5),)),
        ("a <lora:fofr/flux-black-light:1> cat", "a cat", (LoraRef("fofr/flux-black-light", 1.0),)),
        ("<lora:https://x.org/a.safetensors:2>b", "b", (LoraRef("https://x.org/a.safetensors", 2.0),)),
        ("<lora:a:1><lora:b:0.2><lora:c>d", "d", (LoraRef("a", 1.0), LoraRef("b", 0.2), LoraRef("c", 1.0))),
        ("<lora:>", "<lora:>", ()),
    ],
)
def test_tags_become_loras(prompt: str, rest: str, loras: tuple[LoraRef, ...]) -> None:
    notes: list[str] = []
    assert read_lora_tags(prompt, notes) == (rest, loras)
    assert notes == []


@pytest.mark.parametrize(
    ("tag", "scale"), [("<lora:a:9>", 3.0), ("<lora:a:-9>", -1.0), ("<lora:a:0.5:1>", 0.5), ("<lora:a:te=0.5>", 0.5)]
)
def test_a_strength_that_cannot_be_followed_is_noted(tag: str, scale: float) -> None:
    notes: list[str] = []
    assert read_lora_tags(f"cat {tag}", notes)[1] == (LoraRef("a", scale),)
    assert bool(notes) == ("=" not in tag)


@given(st.text(max_size=200) | st.from_regex(r"(<lora:[^<>]{0,20}(:[0-9.+-]{0,6}){0,3}>? ?){1,4}", fullmatch=True))
def test_any_prompt_can_be_read(prompt: str) -> None:
    _, loras = read_lora_tags(prompt, [])
    assert all(MIN_LORA_SCALE <= lora.scale <= MAX_LORA_SCALE for lora in loras)


def test_without_numbers_the_web_uis_size_and_fluxs_steps_are_drawn() -> None:
    notes: list[str] = []
    assert read_numbers(Fields({}), notes) == {
        "aspect_ratio": "custom",
        "width": 512,
        "height": 512,
        "num_inference_steps": 4,
        "num_outputs": 1,
        "seed": None,
    }
    assert notes == []


@pytest.mark.parametrize(
    ("sent", "name", "value", "note"),
    [
        ({"steps": 20}, "num_inference_steps", 4, "steps 20 became 4: FLUX.1 [schnell] takes 1-4"),
        ({"steps": 0}, "num_inference_steps", 1, "steps 0 became 1: FLUX.1 [schnell] takes 1-4"),
        ({"steps": 2}, "num_inference_steps", 2, None),
        ({"width": 5000}, "width", 1440, "width 5000 became 1440: FLUX.1 [schnell] takes 256-1440"),
        ({"height": 300}, "height", 304, "height 300 became 304: sides are multiples of 16"),
        ({"batch_size": 3, "n_iter": 2}, "num_outputs", 4, "6 pictures became 4: ask again for more"),
        ({"batch_size": 2, "n_iter": 2}, "num_outputs", 4, None),
        ({"batch_size": 2, "n_iter": 0}, "num_outputs", 2, "n_iter 0 became 1: pictures are counted from 1"),
        ({"batch_size": -3}, "num_outputs", 1, "batch_size -3 became 1: pictures are counted from 1"),
        ({"batch_size": 1.6}, "num_outputs", 2, "batch_size 1.6 became 2: pictures are counted from 1"),
        ({"seed": -1}, "seed", None, None),
        ({"seed": 0}, "seed", 0, None),
        ({"seed": 2**32 + 7}, "seed", 7, "seed 4294967303 became 7: seeds have 32 bits"),
    ],
)
def test_numbers_are_brought_into_range_with_a_note(
    sent: dict[str, object], name: str, value: object, note: str | None
) -> None:
    notes: list[str] = []
    assert read_numbers(Fields(sent), notes)[name] == value
    assert notes == ([note] if note else [])


def test_a_lyco_tag_is_a_lora_tag_and_says_so() -> None:
    notes: list[str] = []
    assert read_lora_tags("a cat <lyco:glow:0.5>", notes) == ("a cat", (LoraRef("glow", 0.5),))
    assert notes == ["<lyco:glow:0.5> is read as <lora:glow:0.5>: both kinds of files are LoRAs here"]


@pytest.mark.parametrize(("text", "number"), [("20", 20), (" 512 ", 512), ("-1", -1), ("1.5", 1.5), ("7.", 7.0)])
def test_numbers_may_come_as_text(text: str, number: float) -> None:
    assert without_text({"steps": text, "prompt": text}) == {"steps": number, "prompt": text}


@pytest.mark.parametrize("text", ["many", "", "0x10", "1e3", "²", "9" * 40, "٣"])
def test_text_that_spells_no_number_stays_what_it_is(text: str) -> None:
    assert without_text({"width": text}) == {"width": text}


@given(
    st.dictionaries(
        st.sampled_from(["width", "height", "steps", "batch_size", "n_iter", "seed"]),
        st.integers(-(2**40), 2**40) | st.floats(-1e12, 1e12),
    )
)
def test_any_numbers_become_a_picture_that_can_be_drawn(sent: dict[str, float]) -> None:
    fields = Fields(sent | {"seed": int(sent.get("seed", 0))})
    native = read_numbers(fields, [])
    fields.check()
    spec = parse_prompt_object(native | {"prompt": "x"}, GENEROUS).spec
    assert (spec.size.width, spec.size.height, spec.steps) == (
        native["width"],
        native["height"],
        native["num_inference_steps"],
    )


@pytest.mark.parametrize("name", ["width", "height", "steps", "batch_size", "n_iter", "seed"])
@pytest.mark.parametrize("value", ["many", [], True, 1e300])
def test_what_is_no_number_is_refused_by_its_name(name: str, value: object) -> None:
    fields = Fields({name: value})
    read_numbers(fields, [])
    with pytest.raises(InvalidFieldError) as raised:
        fields.check()
    (problem,) = raised.value.problems
    example = {"width": 1024, "height": 1024, "steps": 4, "seed": -1}.get(name, 1)
    kind = "whole number" if name == "seed" else "number"
    assert (problem.field, problem.message.partition(", got")[0]) == (name, f"must be a {kind}, such as {example}")


@pytest.mark.parametrize(
    ("sent", "notes"),
    [
        ({}, []),
        ({"negative_prompt": "", "tiling": False, "styles": []}, []),
        ({"negative_prompt": "blurry"}, ["negative_prompt has no effect with FLUX"]),
        ({"cfg_scale": 1, "sampler_name": "Euler", "scheduler": "Automatic"}, []),
        ({"cfg_scale": 7}, ["cfg_scale 7 became 1: FLUX.1 [schnell] has no other"]),
        ({"sampler_name": ["DPM++"]}, ["sampler_name ['DPM++'] became Euler: FLUX.1 [schnell] has no other"]),
    ],
)
def test_what_has_no_effect_is_noted(sent: dict[str, object], notes: list[str]) -> None:
    assert note_ignored_fields(Fields(sent)) == notes


def test_a_lora_that_is_named_twice_is_one_with_its_strengths_added() -> None:
    assert read_lora_tags("<lora:a:0.5> cat <lora:a:0.25>", []) == ("cat", (LoraRef("a", 0.75),))


@pytest.mark.parametrize("prompt", ["".join(f"<lora:{i}:1>" for i in range(17)), "a cat " + "<lora:a:1>" * 50_000])
def test_a_prompt_full_of_tags_is_refused_before_anything_is_resolved(prompt: str) -> None:
    notes: list[str] = []
    with pytest.raises(InvalidFieldError) as refusal:
        read_lora_tags(prompt, notes)
    assert [problem.field for problem in refusal.value.problems] == ["prompt"]
    assert notes == []
