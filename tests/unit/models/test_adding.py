"""Files that people have become models without a copy, or are refused in words before a weight is read."""

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import checkpoint_files as files
from schnell.errors import ModelFolderError
from schnell.models.adding import add_model, remove_model
from schnell.models.catalogue import added_models, catalogue_entry, find_model
from schnell.models.checkpoint_header import read_checkpoint_header
from schnell.models.checkpoint_parts import find_parts
from schnell.models.folder import open_model_folder
from schnell.models.pull import partial_folder


@pytest.fixture(autouse=True)
def models_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SCHNELL_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def donor(random_flux: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "donor"
    folder.mkdir()
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).symlink_to(random_flux / name)
    return folder


@pytest.mark.parametrize("form", files.SINGLE)
def test_files_become_a_model_that_names_them(form: str, tmp_path: Path, donor: Path) -> None:
    added = add_model(files.SINGLE[form](tmp_path), donor=donor)
    folder = find_model(added.folder.name)
    assert (folder.pixels_per_token, folder.draw_scale, folder.sequence_length) == (16, 1, 256)
    assert {name: folder.transformer[name] for name in files.TRANSFORMER} == files.TRANSFORMER
    config = json.loads((folder.path / "text_encoder_2" / "config.json").read_text())
    assert {name: config[name] for name in files.T5} == files.T5
    # configurations and names alone
    written = [path for path in folder.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in written if path.parent.name[:9] != "tokenizer") < 8_000


def test_a_folder_gets_a_name(random_flux: Path) -> None:
    assert find_model(add_model([random_flux], "mine").folder.name).path.resolve() == random_flux.resolve()
    assert added_models() == ["mine"]
    remove_model("mine")
    assert added_models() == []
    assert (random_flux / "model_index.json").is_file()


def test_what_was_pulled_completes_a_single_file(random_flux: Path, models_dir: Path, tmp_path: Path) -> None:
    partial = partial_folder(catalogue_entry("flux-schnell").path)
    partial.mkdir(parents=True)
    for name in ("tokenizer", "tokenizer_2"):
        (partial / name).symlink_to(random_flux / name)
    added = add_model(files.SINGLE["all in one, fp8"](tmp_path))
    assert added.sources["tokenizer"] == partial / "tokenizer"


def test_what_is_missing_is_named_with_where_it_comes_from(tmp_path: Path, donor: Path) -> None:
    [transformer, *_] = files.SINGLE["one file a network"](tmp_path)
    with pytest.raises(
        ModelFolderError, match=r"clip_l.*t5xxl.*ae\.safetensors.*donor has none.*--without-transformer"
    ):
        add_model([transformer], donor=donor)
    with pytest.raises(ModelFolderError, match="flux-schnell was not pulled"):
        add_model([transformer])
    with pytest.raises(ModelFolderError, match="lacks the transformer"):
        add_model([tmp_path / "ae.safetensors"])


def test_networks_that_do_not_fit_each_other_are_refused(tmp_path: Path, random_flux: Path) -> None:
    [transformer, *_] = files.SINGLE["one file a network"](tmp_path)
    with pytest.raises(ModelFolderError, match="hidden_size is 32, and must be 64"):
        add_model([transformer], donor=random_flux)


def test_names_are_checked(tmp_path: Path, donor: Path, random_flux: Path) -> None:
    for name in ("flux-schnell", "schnell-mini", "../up", "a/b", "x.partial", ""):
        with pytest.raises(ModelFolderError, match="name"):
            add_model([random_flux], name or ".")
    add_model([random_flux], "one")
    with pytest.raises(ModelFolderError, match="--replace"):
        add_model([random_flux], "one")
    add_model(files.SINGLE["all in one, fp8"](tmp_path), "one", donor, replace=True)
    assert find_model("one").transformer["num_single_layers"] == 2
    with pytest.raises(ModelFolderError, match="no model that was added"):
        remove_model("flux-schnell")


def test_a_file_that_went_away_is_named(tmp_path: Path, donor: Path) -> None:
    [file] = files.SINGLE["all in one, fp8"](tmp_path)
    name = add_model([file], donor=donor).folder.name
    file.unlink()
    with pytest.raises(ModelFolderError, match=r"flux1-schnell-fp8.safetensors is not there any more"):
        find_model(name)


def renamed(tensors: files.Tensors, old: str, new: str) -> files.Tensors:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def wider(tensors: files.Tensors, name: str, columns: int) -> files.Tensors:
    return {**tensors, name: torch.zeros(len(tensors[name]), columns)}


FLUX = files.transformer()
FOREIGN: dict[str, tuple[files.Tensors, str]] = {
    "dev": ({**FLUX, "guidance_in.in_layer.weight": torch.zeros(2)}, r"FLUX\.1 \[dev\].*licence"),
    "all-in-one dev": (
        files.prefixed("model.diffusion_model.", {**FLUX, "guidance_in.in_layer.weight": torch.zeros(2)}),
        r"FLUX\.1 \[dev\]",
    ),
    "fill": (wider(FLUX, "img_in.weight", 384), "Fill"),
    "chroma": ({**FLUX, "distilled_guidance_layer.in_proj.weight": torch.zeros(2)}, "Chroma"),
    "FLUX.2": ({"double_stream_modulation_img.lin.weight": torch.zeros(2)}, r"FLUX\.2"),
    "SD3": ({"model.diffusion_model.joint_blocks.0.x": torch.zeros(2)}, "Stable Diffusion 3"),
    "SDXL": ({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2)}, "Stable Diffusion XL"),
    "SD": ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, "Stable Diffusion 1"),
    "a LoRA": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(2)}, "schnell loras add"),
    "NF4": ({**FLUX, "img_in.weight.quant_state.bitsandbytes__nf4": torch.zeros(2)}, "NF4"),
    "a part of a folder": ({"transformer_blocks.0.attn.to_q.weight": torch.zeros(2)}, "model_index.json"),
    "something else": ({"model.layers.0.weight": torch.zeros(2)}, "no network of FLUX"),
    "nothing": ({}, "no network of FLUX"),
    "a tensor too few": ({name: t for name, t in FLUX.items() if name != "txt_in.bias"}, "lacks.*txt_in.bias"),
    "no norms": ({n: t for n, t in FLUX.items() if "query_norm" not in n}, "lacks.*query_norm"),
    "a tensor too many": ({**FLUX, "extra.weight": torch.zeros(2)}, "extra.weight"),
    "another shape": ({**FLUX, "txt_in.bias": torch.zeros(7)}, r"txt_in.bias is \[7\], and must be \[64\]"),
    "a matrix that is none": ({**FLUX, "img_in.weight": torch.zeros(64)}, "sizes in transformer are none"),
    "no heads": ({**FLUX, "double_blocks.0.img_attn.norm.query_norm.scale": torch.zeros(0)}, "sizes in transformer"),
    "a VAE without its last layer": (
        {name: t for name, t in files.vae().items() if name != "decoder.conv_out.bias"},
        "lacks.*decoder.conv_out.bias",
    ),
    "a VAE of another depth": (
        {name: t for name, t in files.vae().items() if "down.3" not in name},
        "vae lacks|vae has|must be",
    ),
    "whole numbers": ({**FLUX, "txt_in.bias": torch.zeros(64, dtype=torch.int8)}, "txt_in.bias is stored as I8"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_models_are_refused_in_words(case: str, tmp_path: Path) -> None:
    tensors, words = FOREIGN[case]
    with pytest.raises(ModelFolderError, match=words):
        add_model([files.write(tmp_path / "model.safetensors", tensors)])


@pytest.mark.parametrize(
    ("pipeline", "config", "words"),
    [
        ("FluxPipeline", {"guidance_embeds": True}, r"FLUX\.1 \[dev\]"),
        ("FluxFillPipeline", {"in_channels": 384}, "Fill"),
        ("FluxPipeline", {"in_channels": 128}, "tools"),
        ("FluxKontextPipeline", {}, "Kontext"),
        ("ChromaPipeline", {}, "Chroma"),
    ],
)
def test_folders_of_other_models_are_refused_in_words(
    pipeline: str, config: dict[str, Any], words: str, random_flux: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for part in random_flux.iterdir():
        (folder / part.name).symlink_to(part)
    for name in ("model_index.json", "transformer"):
        (folder / name).unlink()
    (folder / "transformer").mkdir()
    index = json.loads((random_flux / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline}))
    whole = json.loads((random_flux / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**whole, **config}))
    with pytest.raises(ModelFolderError, match=words):
        open_model_folder(folder)


def test_a_folder_with_a_shard_missing_is_refused(random_flux: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    for part in random_flux.iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "vae").unlink()
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_bytes((random_flux / "vae" / "config.json").read_bytes())
    with pytest.raises(ModelFolderError, match="vae holds no weights"):
        add_model([folder])
    index = {"weight_map": {"a": "one.safetensors", "b": "../two.safetensors"}}
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFolderError, match=r"lacks one.safetensors, two.safetensors"):
        add_model([folder])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither a safetensors nor a GGUF"),
        (b"PK\x03\x04" + bytes(40), "can run code"),
        (b"\x80\x02}q\x00." + bytes(40), "can run code"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>" + bytes(40), "web page"),
        (struct.pack("<Q", 2**60) + b"{" + bytes(40), "damaged or truncated"),
        (save(FLUX)[:-1], "damaged or truncated"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0), "truncated"),
        # a list of 2**60 numbers, which the gguf package would try to hold
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"x", 9, 0, 2**60), "truncated"),
        (b"GGUF" + struct.pack("<IQQQcII", 3, 0, 1, 1, b"x", 9, 9) + bytes(8), "lists of lists"),
        (b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"x", 77), "unknown kind 77"),
    ],
)
def test_damaged_and_hostile_files_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ModelFolderError, match=words):
        read_checkpoint_header(tmp_path / "file")


@pytest.fixture(scope="module")
def bytes_of_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return files.write_gguf(folder / "x.gguf", files.t5(), "Q8_0").read_bytes(), save(files.t5())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_header_is_more_than_a_refusal(
    data: st.DataObject, bytes_of_files: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(data.draw(st.sampled_from(bytes_of_files)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 3000))
        whole[at : at + 1] = data.draw(st.binary(max_size=9))
    cut = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(whole[:cut])
    # any other exception would fail the test
    with suppress(ModelFolderError):
        find_parts(read_checkpoint_header(path))
