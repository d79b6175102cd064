from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_layouts import APPROXIMATE, EXACT, ConvertedLayout, Delta, Kronecker, LoraFile, Product, Stored, dense_delta
from schnell.adapters import Dora, Lokr, LowRank, convert_adapter, inspect_adapter, read_adapter

Form = LowRank | Dora | Lokr


def _relative_error(ours: Delta, reference: Delta, in_features: int) -> float:
    inputs = np.random.default_rng(1).standard_normal((4, in_features), np.float32)
    expected = reference.apply(inputs)
    return float(np.linalg.norm(ours.apply(inputs) - expected) / np.linalg.norm(expected))


def _delta(form: Form) -> Delta:
    """What the factors of a form mean; for DoRA without its magnitudes."""
    if isinstance(form, Lokr):
        right = form.w2 if form.w2 is not None else np.asarray(form.w2_a) @ np.asarray(form.w2_b)
        return Kronecker(form.w1, right, slice(form.start, form.start + form.out_features))
    return Product(np.asarray(form.b, np.float32), np.asarray(form.a, np.float32))


def _convert(file: LoraFile, folder: Path) -> dict[str, Form]:
    source = file.save(folder / "source.safetensors")
    return dict(read_adapter(convert_adapter(source, folder / "cache").path).modules)


@pytest.mark.parametrize("layout", EXACT)
def test_exact_layouts_equal_merged_weights(layout: str, tmp_path: Path) -> None:
    file = EXACT[layout]()
    modules = _convert(file, tmp_path)
    assert set(modules) == set(file.deltas)
    for name, form in modules.items():
        assert isinstance(form, Dora) == (name in file.magnitudes)
        if isinstance(form, Dora):
            np.testing.assert_array_equal(form.magnitude, file.magnitudes[name])
        assert _relative_error(_delta(form), file.deltas[name], form.size.in_features) <= 1e-5, name


@pytest.mark.parametrize("layout", ["diffusers bf16", "LyCORIS LoKr, factor 4"])
def test_a_form_and_its_factors_mean_the_same_delta(layout: str, tmp_path: Path) -> None:
    for name, form in _convert(EXACT[layout](), tmp_path).items():
        assert not isinstance(form, Dora)
        assert _relative_error(Stored(dense_delta(form)), _delta(form), form.size.in_features) <= 1e-5, name


@pytest.mark.parametrize("layout", APPROXIMATE)
def test_approximate_layouts_lose_at_most_a_thousandth_of_the_energy(
    layout: str, converted: Callable[[str], ConvertedLayout]
) -> None:
    found = converted(layout)
    modules = read_adapter(found.adapter.path).modules
    assert set(modules) == set(found.file.deltas)
    for name, form in modules.items():
        assert isinstance(form, LowRank)
        reference = found.file.deltas[name].dense()
        lost = np.linalg.norm(dense_delta(form) - reference) ** 2 / np.linalg.norm(reference) ** 2
        assert lost <= 1e-3, name
        assert form.rank <= 128, name


@pytest.mark.parametrize("layout", [*EXACT, *APPROXIMATE])
def test_inspecting_a_known_layout_finds_no_problem(layout: str, tmp_path: Path) -> None:
    file = (EXACT | APPROXIMATE)[layout]()
    report = inspect_adapter(file.save(tmp_path / "lora.safetensors"))
    assert report.problem is None
    assert report.matched_keys == report.keys == len(file.tensors)


def test_dora_reproduces_pefts_weight_norm_formula(tmp_path: Path) -> None:
    file = EXACT["PEFT DoRA"]()
    form = _convert(file, tmp_path)["transformer.transformer_blocks.0.attn.to_q"]
    assert isinstance(form, Dora)
    weight = np.random.default_rng(2).standard_normal(form.b.shape[:1] + form.a.shape[1:]).astype(np.float32)
    moved = weight + file.deltas["transformer.transformer_blocks.0.attn.to_q"].dense()
    magnitude = file.magnitudes["transformer.transformer_blocks.0.attn.to_q"]
    merged = magnitude[:, None] * moved / np.linalg.norm(moved, axis=1, keepdims=True)
    assert _relative_error(Stored(weight + dense_delta(form, weight)), Stored(merged), form.size.in_features) <= 1e-5


def test_a_fused_up_matrix_with_one_block_a_part_is_split_without_growing(tmp_path: Path) -> None:
    up = np.zeros((3 * 3072, 6), np.float32)
    for part in range(3):
        up[part * 3072 : (part + 1) * 3072, 2 * part : 2 * part + 2] = 1
    down = np.random.default_rng(0).standard_normal((6, 3072)).astype(np.float32)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    modules = _convert(LoraFile({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}), tmp_path)
    assert [form.rank for form in modules.values()] == [2, 2, 2]
    form = modules["transformer.transformer_blocks.0.attn.to_k"]
    assert isinstance(form, LowRank)
    np.testing.assert_array_equal(form.a, down[2:4])


def test_a_canonical_file_converts_to_the_same_tensors(tmp_path: Path) -> None:
    source = EXACT["LyCORIS LoKr, Kohya names"]().save(tmp_path / "source.safetensors")
    once = convert_adapter(source, tmp_path / "once")
    twice = read_adapter(convert_adapter(once.path, tmp_path / "twice").path)
    first = read_adapter(once.path)
    assert set(first.modules) == set(twice.modules)
    for name, form in first.modules.items():
        other = twice.modules[name]
        assert isinstance(form, Lokr)
        assert isinstance(other, Lokr)
        np.testing.assert_array_equal(form.w1, other.w1)
        assert (form.start, form.out_features) == (other.start, other.out_features)


def test_values_keep_their_type_where_scaling_loses_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    stem = "transformer.transformer_blocks.0.attn.to_q"
    tensors: dict[str, Any] = {
        f"{stem}.lora_A.weight": rng.integers(-99, 99, (4, 3072)).astype(np.float16),
        f"{stem}.lora_B.weight": rng.integers(-99, 99, (3072, 4)).astype(np.float16),
        f"{stem}.alpha": np.array(1.0, np.float32),
    }
    form = _convert(LoraFile(tensors), tmp_path)[stem]
    assert isinstance(form, LowRank)
    assert form.a.dtype == form.b.dtype == np.dtype(np.float16)
