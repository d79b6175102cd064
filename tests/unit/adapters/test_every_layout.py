"""The layouts that are in use, each understood in whole or refused in words: none is silently ignored."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_layouts import DIFFUSERS, EXACT, ConvertedLayout, LoraFile, plain
from schnell.adapters import convert_adapter, inspect_adapter
from schnell.errors import AdapterError


def control_lora() -> LoraFile:
    stem = "double_blocks.0.img_attn"
    return LoraFile(
        {
            f"{stem}.proj.lora_A.weight": np.ones((4, 3072), np.float32),
            f"{stem}.proj.lora_B.weight": np.ones((3072, 4), np.float32),
            f"{stem}.proj.lora_B.bias": np.ones(3072, np.float32),
            f"{stem}.norm.query_norm.scale": np.ones(128, np.float32),
        }
    )


def one_trainer_dora() -> LoraFile:
    file = LoraFile(dict(EXACT["OneTrainer"]().tensors))
    for name in [name for name in file.tensors if name.endswith("lora_down.weight")]:
        stem = name.removesuffix(".lora_down.weight")
        file.tensors[f"{stem}.dora_scale"] = np.ones((1, file.tensors[name].shape[1]), np.float32)
    return file


#: The rows of the survey of layouts that are understood, each with its layout here.
UNDERSTOOD = {
    "transformer.*.lora_A/B": "diffusers",
    "transformer.*.lora_A/B with alpha": "diffusers, alpha tensors",
    ".lora.down/up": "diffusers .lora.down",
    "Kohya with alpha": "Kohya",
    "Kohya without alpha": "Kohya without alpha",
    "Kohya + lora_te1": "Kohya + lora_te1",
    "Kohya + lora_te3": "Kohya + lora_te3",
    "Kohya + dora_scale": "Kohya DoRA",
    "PEFT lora_magnitude_vector": "PEFT DoRA",
    "XLabs": "XLabs",
    "XLabs under diffusion_model": "XLabs under diffusion_model",
    "diffusion_model.double_blocks.*.lora_down": "diffusion_model lora_down",
    "diffusion_model.double_blocks.*.lora_A": "diffusion_model lora_A",
    "double_blocks.*.lora_A": "bare double_blocks lora_A",
    "transformer_blocks.*": "unprefixed diffusers",
    "base_model.model.*": "base_model.model diffusers",
    "OneTrainer, all layers": "OneTrainer",
    "LoKr lora_unet_*": "LyCORIS LoKr, Kohya names",
    "LoKr lycoris_*": "LyCORIS LoKr, lycoris_",
    "LoKr transformer.*": "LyCORIS LoKr, transformer.",
    "LoHa of rank 4": "LyCORIS LoHa of rank 4",
    ".diff": ".diff, Kohya names",
}
#: The rows that are refused, with the words.
REFUSED: dict[str, tuple[Callable[[], LoraFile], str]] = {
    "OneTrainer, DoRA per input": (one_trainer_dora, "one per input"),
    "BFL control": (control_lora, "made for FLUX.1 Depth or Canny"),
}


@pytest.mark.parametrize("row", UNDERSTOOD)
def test_every_layout_in_use_is_understood_in_whole(row: str, converted: Callable[[str], ConvertedLayout]) -> None:
    layout = converted(UNDERSTOOD[row])
    assert sum(layout.adapter.info.modules.values()) == len(layout.file.deltas)
    assert inspect_adapter(layout.source).matched_keys == len(layout.file.tensors)


@pytest.mark.parametrize("row", REFUSED)
def test_every_other_layout_is_refused_in_words(row: str, tmp_path: Path) -> None:
    build, refusal = REFUSED[row]
    source = build().save(tmp_path / "lora.safetensors")
    with pytest.raises(AdapterError, match=refusal):
        convert_adapter(source, tmp_path / "cache")


def test_memory_holds_one_layer_at_a_time(tmp_path: Path) -> None:
    layer = DIFFUSERS["transformer_blocks.0.attn.to_q"]
    names = [f"transformer_blocks.{index}.attn.to_q" for index in range(19)]
    file = plain("transformer.", dict.fromkeys(names, layer), rank=64)
    source = file.save(tmp_path / "lora.safetensors")
    assert source.stat().st_size > 25e6
    tracemalloc.start()
    convert_adapter(source, tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
