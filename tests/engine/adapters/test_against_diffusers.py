"""Our converter beside diffusers' own, where diffusers is right: the checkpoint converter knows every fused layer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux_lora_to_diffusers,
    _convert_xlabs_flux_lora_to_diffusers,
)
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

from lora_layouts import EXACT, LoraFile
from schnell.adapters import LowRank, convert_adapter, read_adapter
from schnell.adapters.names import find_destination

WIDTH = 3072
DOUBLE = {
    "attn.qkv": 3,
    "attn.proj": 1,
    "mlp.0": 4,
    "mlp.2": 1,
    "mod.lin": 6,
}
OUTER = {
    "img_in": 1,
    "txt_in": 1,
    "time_in.in_layer": 1,
    "time_in.out_layer": 1,
    "vector_in.in_layer": 1,
    "vector_in.out_layer": 1,
    "final_layer.linear": 1,
    "final_layer.adaLN_modulation.1": 2,
}


def _row_numbers() -> dict[str, torch.Tensor]:
    """A Black Forest Labs checkpoint of one double and one single block whose weights are one column of row numbers."""
    layers = {f"double_blocks.0.{stream}_{name}": units for stream in ("img", "txt") for name, units in DOUBLE.items()}
    layers |= {"single_blocks.0.linear1": 7, "single_blocks.0.linear2": 1, "single_blocks.0.modulation.lin": 3} | OUTER
    checkpoint = {
        f"{name}.{kind}": torch.arange(units * WIDTH)[:, None]
        for name, units in layers.items()
        for kind in ("weight", "bias")
    }
    for norm in (
        "img_attn.norm.query_norm",
        "img_attn.norm.key_norm",
        "txt_attn.norm.query_norm",
        "txt_attn.norm.key_norm",
    ):
        checkpoint[f"double_blocks.0.{norm}.scale"] = torch.zeros(1)
    checkpoint |= {f"single_blocks.0.norm.{name}_norm.scale": torch.zeros(1) for name in ("query", "key")}
    return checkpoint


def test_every_fused_layer_is_split_as_diffusers_splits_whole_checkpoints() -> None:
    checkpoint = _row_numbers()
    names = [name.removesuffix(".weight") for name in checkpoint if name.endswith(".weight")]
    sizes = {name: len(checkpoint[f"{name}.weight"]) for name in names}
    expected = convert_flux_transformer_checkpoint_to_diffusers(dict(checkpoint))
    covered = set()
    for name in names:
        destination = find_destination(name, "transformer")
        assert destination is not None, name
        block = sizes[name] // destination.row_blocks
        for part in destination.parts:
            rows = torch.cat([torch.arange(start * block, stop * block) for start, stop in part.blocks])
            assert torch.equal(expected[f"{part.module}.weight"].reshape(-1), rows), part.module
            covered.add(f"{part.module}.weight")
    assert covered == {name for name, rows in expected.items() if name.endswith(".weight") and len(rows) > 1}


@pytest.mark.parametrize(
    ("layout", "convert"),
    [
        ("Kohya", _convert_kohya_flux_lora_to_diffusers),
        ("Kohya without alpha", _convert_kohya_flux_lora_to_diffusers),
        ("diffusion_model lora_down", _convert_kohya_flux_lora_to_diffusers),
        ("OneTrainer attention", _convert_kohya_flux_lora_to_diffusers),
        ("XLabs", _convert_xlabs_flux_lora_to_diffusers),
    ],
)
def test_deltas_equal_those_of_diffusers_converter(layout: str, convert: object, tmp_path: Path) -> None:
    file = _attention_of(EXACT["OneTrainer"]()) if layout == "OneTrainer attention" else EXACT[layout]()
    theirs = convert({name: torch.tensor(values) for name, values in file.tensors.items()})  # type: ignore[operator]
    theirs = {
        name if name.startswith("transformer.") else f"transformer.{name}": values for name, values in theirs.items()
    }
    ours = read_adapter(convert_adapter(file.save(tmp_path / "source.safetensors"), tmp_path).path).modules
    assert {name.rsplit(".lora_", 1)[0] for name in theirs} == set(ours)
    inputs = np.random.default_rng(5)
    for name, form in ours.items():
        assert isinstance(form, LowRank)
        x = inputs.standard_normal((form.size.in_features, 2), np.float32)
        a, b = (theirs[f"{name}.lora_{part}.weight"].numpy() for part in "AB")
        # diffusers forgets the alpha of the final layer's modulation, so there only the direction is compared
        scale = 3.0 / 4 if name == "transformer.norm_out.linear" and any("alpha" in key for key in file.tensors) else 1
        if layout == "OneTrainer attention":
            scale = 1
        np.testing.assert_allclose(form.b @ (form.a @ x), scale * (b @ (a @ x)), rtol=1e-4, atol=1e-3)


def _attention_of(file: LoraFile) -> LoraFile:
    return LoraFile({name: values for name, values in file.tensors.items() if "_attn_" in name})
