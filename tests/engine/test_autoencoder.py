"""The autoencoder gives what diffusers' gives, from every naming of its weights, whole and in strips."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import autoencoders
from pictures import psnr
from schnell.engine import pictures
from schnell.engine.autoencoder import Autoencoder, AutoencoderShape
from schnell.engine.denoise import Drawing, pack_latents
from schnell.engine.device import FLOAT32
from schnell.engine.loading import load_network
from schnell.engine.strip_decoding import decode_in_strips
from schnell.engine.text import PromptEmbedding
from schnell.errors import ModelFolderError
from schnell.models.autoencoder_tensors import autoencoder_tensors
from schnell.models.folder import ModelFolder
from schnell.spec import Size

CPU = torch.device("cpu")
#: Of latents, rows and columns: 8, 16 pixels each.
SIZES = [(32, 32), (42, 24), (24, 42), (38, 26), (26, 38), (28, 34), (16, 16), (8, 40)]
FLUX = autoencoders.FLUX_CONFIG
#: The configurations that FLUX-type folders have: attention or none, quant convolutions or none, other widths.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "attention": autoencoders.config(),
    "no attention": autoencoders.config(mid_block_add_attention=False),
    "quant convolutions": autoencoders.config(use_quant_conv=True, use_post_quant_conv=True),
    "three levels, wide": autoencoders.config(block_out_channels=(32, 64, 96), layers_per_block=1),
    "four latent channels": autoencoders.config(latent_channels=4, shift_factor=None),
}


def as_pictures(pixels: Tensor) -> list[Image.Image]:
    return [Image.fromarray(array) for array in pictures._to_bytes(pixels).numpy()]


def load_autoencoder(folder: Path) -> Autoencoder:
    vae: Autoencoder = load_network(folder.parent, "vae", FLOAT32, CPU)
    return vae


def stock_decoding(stock: AutoencoderKL, latents: Tensor) -> Tensor:
    raw = latents / stock.config.scaling_factor + (stock.config.shift_factor or 0)
    pixels: Tensor = stock.decode(raw).sample
    return pixels


@pytest.fixture(params=CONFIGS, name="folder", scope="module")
def folder_of_each_config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "vae"
    autoencoders.random_stock(CONFIGS[request.param]).save_pretrained(path)
    return path


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES)
def test_the_embedded_model_decodes_as_diffusers_does(mini: ModelFolder, size: tuple[int, int]) -> None:
    ours = load_autoencoder(mini.path / "vae")
    stock = AutoencoderKL.from_pretrained(mini.path / "vae", torch_dtype=torch.float32)
    latents = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(0))
    [made], [wanted] = as_pictures(ours.decode(latents)), as_pictures(stock_decoding(stock, latents))
    assert psnr(made, wanted) >= 60


@torch.inference_mode()
def test_every_configuration_decodes_and_encodes_as_diffusers_does(folder: Path) -> None:
    ours, stock = load_autoencoder(folder), AutoencoderKL.from_pretrained(folder)
    latents = torch.randn(2, ours.shape.latent_channels, 6, 10)
    torch.testing.assert_close(ours.decode(latents), stock_decoding(stock, latents), rtol=0, atol=1e-4)
    pixels = torch.rand(2, 3, 48, 64) * 2 - 1
    mean = stock.encode(pixels).latent_dist.mode()
    wanted = (mean - (stock.config.shift_factor or 0)) * stock.config.scaling_factor
    torch.testing.assert_close(ours.encode(pixels), wanted, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_strips_are_the_whole_decoding(folder: Path) -> None:
    vae = load_autoencoder(folder)
    latents = torch.randn(2, vae.shape.latent_channels, 7, 5)
    # so few bytes that the largest maps are cut into some rows each
    in_strips = decode_in_strips(vae, latents, strip_bytes=50_000)
    torch.testing.assert_close(in_strips, vae.decode(latents), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_strips_of_the_embedded_model_are_the_whole_picture(mini: ModelFolder) -> None:
    vae = load_autoencoder(mini.path / "vae")
    latents = torch.randn(1, 16, 24, 32, generator=torch.Generator().manual_seed(1))
    [made], [whole] = as_pictures(decode_in_strips(vae, latents, strip_bytes=1 << 19)), as_pictures(vae.decode(latents))
    assert psnr(made, whole) >= 60


def test_black_forest_labs_names_are_the_same_network(folder: Path, tmp_path: Path) -> None:
    by_diffusers = load_autoencoder(folder).state_dict()
    config = json.loads((folder / "config.json").read_text())
    other = tmp_path / "vae"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    save_file(autoencoders.as_black_forest_labs(by_diffusers), other / "ae.safetensors")
    by_bfl = load_autoencoder(other).state_dict()
    assert by_bfl.keys() == by_diffusers.keys()
    assert all(torch.equal(by_bfl[name], tensor) for name, tensor in by_diffusers.items())


def test_flux_itself_has_diffusers_names_and_sizes() -> None:
    with torch.device("meta"):
        ours = Autoencoder(AutoencoderShape.from_config(FLUX)).state_dict()
        stock = AutoencoderKL.from_config(dict(FLUX)).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in stock.items()}
    assert len(ours) == 244
    # what `schnell models add` asks of a file
    assert dict(autoencoder_tensors(FLUX, {})) == {name: tuple(tensor.shape) for name, tensor in ours.items()}


def test_pictures_from_tiles_are_the_whole_pictures(mini: ModelFolder) -> None:
    vae = load_autoencoder(mini.path / "vae")
    latents = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(2))
    prompt = PromptEmbedding(torch.zeros(1, 1), torch.zeros(1), was_truncated=False)
    drawing = Drawing(pack_latents(latents), sigmas=(1.0, 0.0), step=1, grid=Size(4, 4), prompt=prompt)
    [made] = pictures.decode_latents(vae, [drawing], tiles=True)
    [whole] = pictures.decode_latents(vae, [drawing])
    assert psnr(made, whole) >= 60


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("act_fn", "relu", "act_fn must be silu"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 4, "AttnDownEncoderBlock2D, which no FLUX model has"),
        ("latents_mean", [0.0] * 16, "latents_mean must be None"),
        ("out_channels", 4, "as many picture channels"),
    ],
)
def test_another_kind_of_autoencoder_is_refused(field: str, value: Any, words: str) -> None:
    with pytest.raises(ModelFolderError, match=words):
        AutoencoderShape.from_config({**FLUX, field: value})


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vae"
    autoencoders.random_stock(CONFIGS["attention"]).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "layers_per_block": 3}))
    with pytest.raises(ModelFolderError, match="lack"):
        load_autoencoder(tmp_path / "vae")
