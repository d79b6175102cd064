import io
import json
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_layouts import EXACT, WIDTH, Layer, LoraFile, add_loha, kohya
from schnell.adapters import FLUX_1, convert_adapter, inspect_adapter
from schnell.errors import AdapterError

TO_Q = "transformer.transformer_blocks.0.attn.to_q"


def low_rank(stem: str = TO_Q, out: int = WIDTH, into: int = WIDTH, rank: int = 2, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        f"{stem}.lora_A.weight": rng.standard_normal((rank, into), np.float32),
        f"{stem}.lora_B.weight": rng.standard_normal((out, rank), np.float32),
    } | more


def refusal(tensors: dict[str, Any], folder: Path, **options: Any) -> str:
    source = LoraFile(tensors).save(folder / "source.safetensors")
    return refusal_of(source, folder, **options)


def refusal_of(source: Path, folder: Path, **options: Any) -> str:
    """The message of the refusal, after checking that nothing was left on disk."""
    with pytest.raises(AdapterError) as caught:
        convert_adapter(source, folder / "cache", **options)
    left = list((folder / "cache").rglob("*")) if (folder / "cache").exists() else []
    assert left == []
    return caught.value.message


@pytest.mark.parametrize(
    ("key", "shape", "model"),
    [
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", (4, 768), "Stable Diffusion 1.5"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", (4, 2048), "SDXL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", (4, 640), "SDXL"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", (4, 1280), "SDXL"),
        ("transformer.transformer_blocks.0.ff.linear_in", (4, 6144), "FLUX.2"),
        ("diffusion_model.double_stream_modulation_img.lin", (4, 6144), "FLUX.2"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", (4, 1536), "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.img_mlp.net.2", (4, 12288), "Qwen-Image"),
        ("diffusion_model.blocks.0.self_attn.q", (4, 5120), "Wan"),
        ("diffusion_model.double_blocks.0.img_attn_qkv", (4, 3072), "HunyuanVideo"),
    ],
)
def test_a_file_for_another_model_is_refused_with_that_models_name(
    key: str, shape: tuple[int, int], model: str, tmp_path: Path
) -> None:
    message = refusal(
        {f"{key}.lora_down.weight": np.ones(shape, np.float32), f"{key}.lora_up.weight": np.ones((8, 4), np.float32)},
        tmp_path,
    )
    assert message.startswith("0 of 2 keys match a layer of FLUX.1; unknown: ")
    assert message.endswith(f"made for {model}")


def test_flux_2_files_with_flux_1_names_are_recognised_by_their_sizes(tmp_path: Path) -> None:
    message = refusal(low_rank("diffusion_model.double_blocks.0.img_attn.qkv", 3 * 6144, 6144), tmp_path, shape=FLUX_1)
    assert "made for width 6144 (FLUX.2), this model is 3072 wide" in message
    klein = refusal(low_rank("diffusion_model.single_blocks.0.linear1", 9 * WIDTH, WIDTH), tmp_path)
    assert "FLUX.2" in klein


def test_a_partly_known_file_is_refused_with_counts_prefixes_layout_and_model(tmp_path: Path) -> None:
    tensors = low_rank() | low_rank("transformer.extra_blocks.0.attn.to_q")
    message = refusal(tensors, tmp_path)
    assert message == (
        "2 of 4 keys match a layer of FLUX.1; unknown: transformer.extra_blocks (2). "
        "It looks like a diffusers LoRA, made for FLUX.1"
    )


def test_a_whole_model_is_named_as_such(tmp_path: Path) -> None:
    names = ("img_attn.qkv.weight", "img_attn.proj.weight", "img_mlp.0.weight")
    tensors = {f"double_blocks.0.{name}": np.ones((2, 2), np.float32) for name in names}
    assert "a whole model, not a LoRA" in refusal(tensors, tmp_path)


def test_a_file_of_the_wrong_width_is_refused_naming_both(tmp_path: Path) -> None:
    shape = replace(FLUX_1, width=256)
    assert refusal(low_rank(), tmp_path, shape=shape) == (
        "this LoRA does not fit the model: it is made for width 3072 (FLUX.1), this model is 256 wide"
    )
    narrow = low_rank(out=256, into=256)
    assert "it is made for width 256" in refusal(narrow, tmp_path, shape=FLUX_1)


def test_an_already_converted_file_is_still_measured_against_the_model(tmp_path: Path) -> None:
    source = LoraFile(low_rank()).save(tmp_path / "source.safetensors")
    convert_adapter(source, tmp_path / "cache", shape=FLUX_1)
    with pytest.raises(AdapterError, match="made for width 3072"):
        convert_adapter(source, tmp_path / "cache", shape=replace(FLUX_1, width=256))


@pytest.mark.parametrize(
    ("stem", "family", "count"),
    [
        ("transformer.transformer_blocks.19.attn.to_q", "transformer_blocks", 19),
        ("transformer.single_transformer_blocks.38.attn.to_q", "single_transformer_blocks", 38),
    ],
)
def test_blocks_beyond_the_models_are_refused(stem: str, family: str, count: int, tmp_path: Path) -> None:
    message = refusal(low_rank(stem), tmp_path)
    assert f"transformer.{family}.{count}, this model has only {count}" in message
    fewer = replace(FLUX_1, double_blocks=3, single_blocks=6)
    assert "this model has only 3" in refusal(
        low_rank("transformer.transformer_blocks.3.attn.to_q"), tmp_path, shape=fewer
    )


def test_a_layer_of_the_wrong_size_is_refused_naming_both_sizes(tmp_path: Path) -> None:
    wide = low_rank() | low_rank("transformer.x_embedder", WIDTH, 128)
    assert "transformer.x_embedder is 3072 x 128 in the file" in refusal(wide, tmp_path)


def test_the_guidance_embedder_is_dropped_with_a_warning(tmp_path: Path) -> None:
    tensors = low_rank() | low_rank("transformer.time_text_embed.guidance_embedder.linear_1", WIDTH, 256)
    converted = convert_adapter(LoraFile(tensors).save(tmp_path / "source.safetensors"), tmp_path)
    assert converted.info.modules == {"transformer": 1}
    assert converted.info.warnings == (
        "1 layers of FLUX.1 [dev]'s guidance embedder were left out: this model has none",
    )


def test_loha_beyond_rank_128_is_refused_with_the_energy_figure(tmp_path: Path) -> None:
    narrow = Layer(768, 768, {TO_Q: slice(None)})  # the SVD of a real-width layer takes seconds
    layers = {"transformer_blocks.0.attn.to_q": narrow}
    file = add_loha(LoraFile(), layers, lambda name: f"lycoris_{kohya(name)}", 16)
    message = refusal_of(file.save(tmp_path / "source.safetensors"), tmp_path)
    figure = re.search(r"only (\d+\.\d+)% of its energy would remain, 99.9% is needed", message)
    assert figure is not None
    assert 40 < float(figure[1]) < 99.9


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t | {f"{TO_Q}.lora_A.weight": np.full((2, WIDTH), np.nan, np.float32)}, "NaN or infinity"),
        (lambda t: t | {f"{TO_Q}.lora_B.weight": np.full((WIDTH, 2), np.inf, np.float32)}, "NaN or infinity"),
        (lambda t: t | {f"{TO_Q}.lora_B.weight": np.zeros((WIDTH, 2), np.float32)}, "changes nothing"),
        (lambda t: t | {f"{TO_Q}.alpha": np.array(np.nan, np.float32)}, "NaN or infinity"),
        (lambda t: t | {f"{TO_Q}.alpha": np.array(3e38, np.float32), **_big()}, "overflow"),
        (lambda t: {name: values * np.float32(1e12) for name, values in t.items()}, "arithmetic overflows"),
        (lambda t: t | {f"{TO_Q}.dora_scale": np.full((WIDTH, 1), 1e20, np.float32)}, "arithmetic overflows"),
        (lambda t: t | {f"{TO_Q}.alpha": np.ones(3, np.float32)}, "not one number"),
        (lambda t: t | {f"{TO_Q}.lora_A.weight": np.ones((3, WIDTH), np.float32)}, "ranks of up"),
        (lambda t: t | {f"{TO_Q}.lora_A.weight": np.ones((2, WIDTH), np.int32)}, "not a floating-point type"),
        (lambda t: t | {f"{TO_Q}.lora_A.weight": np.ones((2, 16, 3, 3), np.float32)}, "convolution"),
        (lambda t: t | {f"{TO_Q}.lora_A.weight": np.ones(WIDTH, np.float32)}, "not [rows, columns]"),
        (lambda t: {f"{TO_Q}.lora_A.weight": t[f"{TO_Q}.lora_A.weight"]}, "incomplete: it has only down"),
        (lambda t: t | low_rank("lora_unet_transformer_blocks_0_attn_to_q"), "both target transformer_blocks.0"),
        (lambda t: t | {f"{TO_Q}.dora_scale": np.ones((1, WIDTH), np.float32)}, "one per input"),
        (lambda t: t | {f"{TO_Q}.diff_b": np.ones(WIDTH, np.float32)}, "changes a bias"),
        (lambda t: t | {f"{TO_Q}.lora_B.bias": np.ones(WIDTH, np.float32)}, "2 of 3 keys"),
        (lambda _: low_rank(rank=4096), "rank 4096; at most 1024"),
        (lambda _: low_rank(out=768, into=768, rank=400), "rank 400 cannot be brought to 128: only"),
    ],
)
def test_bad_values_are_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], complaint: str, tmp_path: Path
) -> None:
    assert complaint in refusal(change(low_rank()), tmp_path)


def _big() -> dict[str, Any]:
    return {f"{TO_Q}.lora_B.weight": np.full((WIDTH, 2), 1e3, np.float32)}


def _header(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(start: int, stop: int, dtype: str = "F32", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [1], "data_offsets": [start, stop]}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "header of 10 GB": (_header({}, length=10 * 2**30), "claims 10,737,418,240 bytes"),
    "header beyond the file": (_header({}, length=5000), "truncated"),
    "not JSON": (_header(b"{nope"), "not valid JSON"),
    "deep nesting": (_header(b'{"a":' + b"[" * 200_000), "not valid JSON"),
    "a list": (_header(b"[1, 2, 3]"), "not a JSON object"),
    "a key twice": (_header(b'{"a":{},"a":{}}'), "twice"),
    "overlapping": (_header({"a": _entry(0, 4), "b": _entry(2, 6)}, b"\0" * 6), "overlap"),
    "a gap": (_header({"a": _entry(0, 4), "b": _entry(8, 12)}, b"\0" * 12), "unclaimed"),
    "beyond the end": (_header({"a": _entry(0, 4_000_000_000, shape=[1_000_000_000])}, b"\0" * 4), "truncated"),
    "bytes after the end": (_header({"a": _entry(0, 4)}, b"\0" * 9), "belong to no tensor"),
    "negative offsets": (_header({"a": _entry(-4, 0)}), "data_offsets"),
    "huge shape": (_header({"a": _entry(0, 4, shape=[2**40, 2**40])}, b"\0" * 4), "needs"),
    "shape of floats": (_header({"a": _entry(0, 4, shape=[1.5])}, b"\0" * 4), "shape"),
    "unknown type": (_header({"a": _entry(0, 4, "Q4_K")}, b"\0" * 4), "type Q4_K"),
    "control characters": (_header({"a\x1b[2J": _entry(0, 4)}, b"\0" * 4), "control characters"),
    "pickle": (pickle.dumps({"a": 1}, protocol=4), "pickle"),
    "GGUF": (b"GGUF" + b"\0" * 60, "GGUF"),
    "web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "no tensors": (_header({}), "holds no tensors"),
    "noise": (bytes(range(1, 200)), "not a safetensors file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_containers_are_refused(kind: str, tmp_path: Path) -> None:
    data, complaint = HOSTILE[kind]
    source = tmp_path / "source.safetensors"
    source.write_bytes(data)
    assert complaint in refusal_of(source, tmp_path)
    assert complaint in str(inspect_adapter(source).problem)


def test_pytorch_checkpoints_are_refused_as_pickle(tmp_path: Path) -> None:
    source = tmp_path / "lora.pt"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
    assert "never pickle" in refusal_of(source, tmp_path)


def test_a_file_above_the_size_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    with source.open("wb") as file:
        file.truncate(2**40)
    assert "at most 1,000" in refusal_of(source, tmp_path, max_bytes=1000)


def test_a_truncated_download_is_refused(tmp_path: Path) -> None:
    source = EXACT["XLabs"]().save(tmp_path / "source.safetensors")
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size - 5)
    assert "truncated" in refusal_of(source, tmp_path)


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_replicates_trainer_tar_is_unpacked_and_its_trigger_word_read(mode: str, tmp_path: Path) -> None:
    file = EXACT["diffusers fp16"]()
    lora = file.save(tmp_path / "inner.safetensors").read_bytes()
    source = tmp_path / "trained_model.tar"
    config = b"job: extension\nconfig:\n  trigger_word: TOK\n"
    source.write_bytes(
        _tar(
            [
                (_member("output/flux_train_replicate", tarfile.DIRTYPE), b""),
                (_member("output/flux_train_replicate/lora.safetensors"), lora),
                (_member("output/flux_train_replicate/config.yaml"), config),
                (_member("output/flux_train_replicate/captions/1.txt"), b"a photo of TOK"),
            ],
            mode,
        )
    )
    converted = convert_adapter(source, tmp_path / "cache")
    assert converted.info.trigger_words == ("TOK",)
    assert converted.info.modules == {"transformer": 2}
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [converted.path.name]
    assert inspect_adapter(source).trigger_words == ("TOK",)


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (_member("../../etc/cron.d/x"), "out of its folder"),
        (_member("/etc/passwd"), "out of its folder"),
        (_member("a/lora.safetensors", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (_member("a/lora.safetensors", tarfile.LNKTYPE, "a/b"), "a link"),
        (_member("a/fifo", tarfile.FIFOTYPE), "a link, a device"),
        (_member("readme.txt"), "holds no .safetensors"),
    ],
)
def test_archives_that_reach_outside_are_refused(member: tarfile.TarInfo, complaint: str, tmp_path: Path) -> None:
    source = tmp_path / "weights.tar"
    source.write_bytes(_tar([(member, b"")]))
    assert complaint in refusal_of(source, tmp_path)


def test_an_archive_of_several_loras_is_refused_naming_them(tmp_path: Path) -> None:
    source = tmp_path / "weights.tar"
    source.write_bytes(_tar([(_member("a.safetensors"), b"x"), (_member("b.safetensors"), b"y")]))
    assert "2 LoRA files (a.safetensors, b.safetensors)" in refusal_of(source, tmp_path)


def test_a_compressed_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    source = tmp_path / "weights.tar.gz"
    source.write_bytes(_tar([(_member("lora.safetensors"), b"\0" * 20_000_000)], "w:gz"))
    assert source.stat().st_size < 100_000
    assert "1,000,000 bytes" in refusal_of(source, tmp_path, max_bytes=1_000_000)


def test_an_extended_header_of_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    header = _member("x", tarfile.XHDTYPE)
    header.size = 3 * 2**30
    source = tmp_path / "weights.tar"
    source.write_bytes(header.tobuf() + b"\0" * 4096)
    assert "header" in refusal_of(source, tmp_path)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    whole = _tar([(_member("lora.safetensors"), b"\1" * 100_000)])
    source = tmp_path / "weights.tar"
    source.write_bytes(whole[:50_000])
    assert "truncated" in refusal_of(source, tmp_path)
