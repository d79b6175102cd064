import json
from pathlib import Path

import numpy as np

from lora_layouts import EXACT, LoraFile
from schnell.adapters import FLUX_1, LowRank, convert_adapter, inspect_adapter, read_adapter, read_model_shape
from schnell.adapters.shape import EncoderShape, ModelShape

STEM = "transformer.transformer_blocks.0.attn.to_q"


def _tensors(rank: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"{STEM}.lora_A.weight": rng.standard_normal((rank, 3072), np.float32),
        f"{STEM}.lora_B.weight": rng.standard_normal((3072, rank), np.float32),
    }


def test_a_report_tells_layout_model_rank_alpha_and_what_the_metadata_say(tmp_path: Path) -> None:
    file = EXACT["Kohya + lora_te1"]()
    file.metadata = {
        "modelspec.trigger_phrase": "in the style of TOK",
        "ss_base_model_version": "flux1",
        "modelspec.license": "Apache-2.0",
    }
    report = inspect_adapter(file.save(tmp_path / "lora.safetensors"), shape=FLUX_1)
    assert (report.layout, report.made_for, report.rank, report.alpha) == ("Kohya LoRA", "FLUX.1", 4, 3.0)
    assert report.modules == {"transformer": 2, "text_encoder": 2}
    assert (report.trigger_words, report.base_model) == (("in the style of TOK",), ("flux1",))
    assert (report.licence, report.width) == ("Apache-2.0", 3072)


def test_canonical_metadata_survive_the_file(tmp_path: Path) -> None:
    file = LoraFile(_tensors(), {"trigger_words": json.dumps(["a", "b"]), "license": "MIT"})
    converted = convert_adapter(file.save(tmp_path / "lora.safetensors"), tmp_path)
    info = read_adapter(converted.path).info
    assert info == converted.info
    assert (info.trigger_words, info.licence, info.rank, info.width) == (("a", "b"), "MIT", 2, 3072)
    assert info.source_sha256 == converted.sha256 == converted.path.stem


def test_pefts_configuration_beside_the_file_sets_scale_and_address(tmp_path: Path) -> None:
    source = LoraFile(_tensors()).save(tmp_path / "adapter_model.safetensors")
    plain = convert_adapter(source, tmp_path / "cache")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    scaled = convert_adapter(source, tmp_path / "cache")
    assert plain.path != scaled.path
    name = "transformer.transformer_blocks.0.attn.to_q"
    ours, before = read_adapter(scaled.path).modules[name], read_adapter(plain.path).modules[name]
    assert isinstance(ours, LowRank)
    assert isinstance(before, LowRank)
    np.testing.assert_array_equal(np.asarray(ours.b), 4 * np.asarray(before.b))


def test_the_models_shape_is_read_from_its_configs() -> None:
    folder = Path(read_model_shape.__code__.co_filename).parents[1] / "models" / "embedded" / "schnell-mini"
    shape = read_model_shape(folder)
    assert isinstance(shape, ModelShape)
    assert (shape.width, shape.double_blocks, shape.single_blocks) == (256, 2, 12)
    assert shape.clip == EncoderShape(256, 256, 1024, 3)
