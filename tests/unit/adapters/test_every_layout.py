"""The layouts that are in use, each understood in whole or refused in words: none is silently ignored."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_layouts import APPROXIMATE, DIFFUSERS, EXACT, LoraFile, plain
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


#: Each row of the survey of layouts, and the refusal where it is refused.
ROWS: dict[str, tuple[Callable[[], LoraFile], str | None]] = {
    "transformer.*.lora_A/B": (EXACT["diffusers"], None),
    "transformer.*.lora_A/B with alpha": (EXACT["diffusers, alpha tensors"], None),
    ".lora.down/up": (EXACT["diffusers .lora.down"], None),
    "Kohya with alpha": (EXACT["Kohya"], None),
    "Kohya without alpha": (EXACT["Kohya without alpha"], None),
    "Kohya + lora_te1": (EXACT["Kohya + lora_te1"], None),
    "Kohya + lora_te3": (EXACT["Kohya + lora_te3"], None),
    "Kohya + dora_scale": (EXACT["Kohya DoRA"], None),
    "PEFT lora_magnitude_vector": (EXACT["PEFT DoRA"], None),
    "XLabs": (EXACT["XLabs"], None),
    "XLabs under diffusion_model": (EXACT["XLabs under diffusion_model"], None),
    "diffusion_model.double_blocks.*.lora_down": (EXACT["diffusion_model lora_down"], None),
    "diffusion_model.double_blocks.*.lora_A": (EXACT["diffusion_model lora_A"], None),
    "double_blocks.*.lora_A": (EXACT["bare double_blocks lora_A"], None),
    "transformer_blocks.*": (EXACT["unprefixed diffusers"], None),
    "base_model.model.*": (EXACT["base_model.model diffusers"], None),
    "OneTrainer, all layers": (EXACT["OneTrainer"], None),
    "OneTrainer, DoRA per input": (one_trainer_dora, "one per input"),
    "LoKr lora_unet_*": (EXACT["LyCORIS LoKr, Kohya names"], None),
    "LoKr lycoris_*": (EXACT["LyCORIS LoKr, lycoris_"], None),
    "LoKr transformer.*": (EXACT["LyCORIS LoKr, transformer."], None),
    "LoHa of rank 4": (EXACT["LyCORIS LoHa of rank 4"], None),
    ".diff": (APPROXIMATE[".diff, Kohya names"], None),
    "BFL control": (control_lora, "made for FLUX.1 Depth or Canny"),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_layout_is_understood_in_whole_or_refused_in_words(row: str, tmp_path: Path) -> None:
    build, refusal = ROWS[row]
    file = build()
    source = file.save(tmp_path / "lora.safetensors")
    if refusal is not None:
        with pytest.raises(AdapterError, match=refusal):
            convert_adapter(source, tmp_path / "cache")
        return
    info = convert_adapter(source, tmp_path / "cache").info
    assert sum(info.modules.values()) == len(file.deltas)
    assert inspect_adapter(source).matched_keys == len(file.tensors)


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
