from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import FieldError, InvalidFieldError, MissingFieldError
from schnell.spec import GenerationSpec, LoraRef, Size, combine_loras, output_format_named, output_seed, random_seed


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"prompt": "x" * 4001}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"steps": 0}, "num_inference_steps"),
        ({"steps": 5}, "num_inference_steps"),
        ({"output_quality": 101}, "output_quality"),
        ({"num_outputs": 5}, "num_outputs"),
        ({"size": Size(255, 256)}, "width"),
        ({"size": Size(256, 1441)}, "height"),
        ({"loras": (LoraRef("x", 3.1),)}, "lora_scale"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        GenerationSpec(**({"prompt": "apple"} | values))
    assert [problem.field for problem in caught.value.problems] == [field]


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(FieldError) as caught:
        GenerationSpec("apple", steps=9, output_quality=-1)
    assert {problem.field for problem in caught.value.problems} == {"num_inference_steps", "output_quality"}


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_missing(prompt: str) -> None:
    with pytest.raises(MissingFieldError):
        GenerationSpec(prompt)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_output_seeds_count_up_and_wrap_at_32_bits(seed: int, index: int) -> None:
    assert output_seed(seed, index) == (seed + index) % 2**32


def test_seed_zero_is_a_seed() -> None:
    assert GenerationSpec("apple", seed=0).seed == 0


def test_random_seeds_use_all_32_bits() -> None:
    seeds = [random_seed() for _ in range(200)]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert max(seeds) > 2**31
    assert len(set(seeds)) > 190


def test_jpg_is_jpeg_and_gif_is_refused() -> None:
    assert output_format_named("JPG") == "jpeg"
    with pytest.raises(InvalidFieldError, match="gif"):
        output_format_named("gif")


def test_a_lora_named_twice_is_one_with_its_scales_added() -> None:
    named = (LoraRef("a", 0.5), LoraRef("b", 1.0), LoraRef("a", 0.25))
    assert combine_loras(named) == (LoraRef("a", 0.75), LoraRef("b", 1.0))


def test_added_scales_stay_in_their_range() -> None:
    assert combine_loras([LoraRef("a", 2.0)] * 3) == (LoraRef("a", 3.0),)
    assert combine_loras([LoraRef("a", -1.0)] * 3) == (LoraRef("a", -1.0),)


def test_more_than_eight_loras_are_refused_by_name_of_the_field() -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        GenerationSpec("apple", loras=tuple(LoraRef(f"lora-{i}") for i in range(9)))
    assert [problem.field for problem in refusal.value.problems] == ["lora_weights"]
    assert "8 LoRAs" in refusal.value.problems[0].message
