"""What the command does around the engine: the request it makes of its options, and the files it writes."""

from pathlib import Path
from typing import Any

import pytest

from schnell.cli import generate
from schnell.errors import InvalidFieldError, MissingFieldError
from schnell.models.folder import ModelFolder
from schnell.spec import GeneratedImage, GenerationSpec, JobOutcome, LoraRef


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[GenerationSpec]:
    """The requests that the command would have drawn; each gives as many pictures as it asks for."""
    specs: list[GenerationSpec] = []

    def draw(spec: GenerationSpec, model: str, device: str, *, proof: bool) -> JobOutcome:
        specs.append(spec)
        images = tuple(
            GeneratedImage(index, 7 + index, b"picture", "image/webp", *spec.size, receipt={"seed": 7 + index})
            for index in range(spec.num_outputs)
        )
        return JobOutcome(images, timings={"denoise": 0.123456})

    monkeypatch.setattr(generate, "_draw", draw)
    return specs


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("neon", LoraRef("neon")),
        ("neon:0.5", LoraRef("neon", 0.5)),
        ("owner/name:-1", LoraRef("owner/name", -1.0)),
        ("https://site.example/neon.safetensors", LoraRef("https://site.example/neon.safetensors")),
        ("https://site.example/neon.safetensors:1.5", LoraRef("https://site.example/neon.safetensors", 1.5)),
        (r"C:\loras\neon.safetensors", LoraRef(r"C:\loras\neon.safetensors")),
    ],
)
def test_a_scale_stands_behind_the_last_colon(run: Any, asked: list[GenerationSpec], text: str, lora: LoraRef) -> None:
    run("generate", "apple", "--lora", text)
    assert asked[0].loras == (lora,)


def test_options_become_the_request(run: Any, asked: list[GenerationSpec]) -> None:
    run("generate", "apple", "--width", "256", "--height", "512", "--no-go-fast", "--no-safety", "--output", "a.png")
    [spec] = asked
    assert (spec.size, spec.output_format) == ((256, 512), "png")
    assert (spec.go_fast, spec.safety_checker, spec.seed) == (False, False, None)


def test_a_side_that_the_ratio_custom_lacks_is_1024_and_without_it_is_asked_for(
    run: Any, asked: list[GenerationSpec]
) -> None:
    run("generate", "apple", "--aspect-ratio", "custom", "--width", "512")
    assert asked[0].size == (512, 1024)
    with pytest.raises(MissingFieldError, match="width: is required with height"):
        run("generate", "apple", "--height", "512")


def test_a_picture_to_repeat_that_is_not_there_is_said_not_to_be_there(run: Any) -> None:
    with pytest.raises(InvalidFieldError, match=r"from: there is no file missing\.webp"):
        run("generate", "--from", "missing.webp")


def test_one_picture_has_the_name_given_and_several_are_numbered(
    run: Any, asked: list[GenerationSpec], tmp_path: Path
) -> None:
    run("generate", "apple", "--output", "new/one.webp")
    run("generate", "apple", "--output", "new/two.webp", "--num-outputs", "2")
    assert len(asked) == 2
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.webp", "two-0.webp", "two-1.webp"]


def test_json_names_each_file_with_its_receipt(run: Any, asked: list[GenerationSpec]) -> None:
    printed = run("generate", "apple", "--output", "a.webp", "--json")
    assert printed == {
        "images": [{"file": "a.webp", "receipt": {"seed": 7}, "proof": {"mark": None, "credentials": None}}],
        "flagged": [],
        "warnings": [],
        "timings": {"denoise": 0.1235},
    }
    assert len(asked) == 1


def test_a_wholly_withheld_request_writes_nothing_and_names_the_way_out(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(generate, "_draw", lambda *_, **__: JobOutcome((), flagged=(0,)))
    with pytest.raises(InvalidFieldError, match="--no-safety"):
        run("generate", "apple", "--output", "new/a.webp")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("output", ["picture.gif", "picture"])
def test_an_ending_that_is_no_format_is_refused(run: Any, asked: list[GenerationSpec], output: str) -> None:
    with pytest.raises(InvalidFieldError, match="output_format"):
        run("generate", "apple", "--output", output)
    assert not asked


def test_a_prompt_is_needed(run: Any, asked: list[GenerationSpec]) -> None:
    with pytest.raises(MissingFieldError, match="prompt"):
        run("generate")
    assert not asked


def test_a_lora_that_is_neither_a_file_nor_bundled_is_refused_with_the_bundled_names(mini: ModelFolder) -> None:
    bundled = [path.stem for path in (mini.path.parent / "loras").glob("*.safetensors")]
    assert bundled
    with pytest.raises(InvalidFieldError, match="no-such-lora is neither a file nor a bundled LoRA") as caught:
        generate._lora_file("no-such-lora", mini)
    assert all(name in str(caught.value) for name in bundled)
