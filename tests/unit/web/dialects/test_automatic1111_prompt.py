import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import InvalidFieldError
from schnell.spec import MAX_LORA_SCALE, MIN_LORA_SCALE, LoraRef
from schnell.web.dialects.automatic1111 import read_lora_tags


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


def test_a_lora_that_is_named_twice_is_one_with_its_strengths_added() -> None:
    assert read_lora_tags("<lora:a:0.5> cat <lora:a:0.25>", []) == ("cat", (LoraRef("a", 0.75),))


@pytest.mark.parametrize("prompt", ["".join(f"<lora:{i}:1>" for i in range(17)), "a cat " + "<lora:a:1>" * 50_000])
def test_a_prompt_full_of_tags_is_refused_before_anything_is_resolved(prompt: str) -> None:
    notes: list[str] = []
    with pytest.raises(InvalidFieldError) as refusal:
        read_lora_tags(prompt, notes)
    assert [problem.field for problem in refusal.value.problems] == ["prompt"]
    assert notes == []
