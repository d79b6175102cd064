"""The tensors of a network are the same out of every kind of file."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

import checkpoint_files as files
from schnell.engine.autoencoder import named_as_ours
from schnell.engine.checkpoint_files import component_tensors, source_tensors
from schnell.engine.device import FLOAT32
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.loading import load_network
from schnell.models.adding import add_model
from schnell.models.folder import ModelFolder
from schnell.models.network_tensors import describe_transformer, transformer_tensors
from schnell.models.weight_files import WeightSource

CPU = torch.device("cpu")
#: FLUX.1 [schnell]'s own configuration.
FLUX_1 = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": [16, 56, 56],
}


@pytest.fixture(params=files.SINGLE, name="form", scope="module")
def each_form(request: pytest.FixtureRequest) -> str:
    form: str = request.param
    return form


@pytest.fixture(scope="module")
def model(form: str, tmp_path_factory: pytest.TempPathFactory, tokenizers: Path) -> Path:
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHNELL_MODELS_DIR", str(folder / "models"))
        return add_model(files.SINGLE[form](folder), "ours", donor=tokenizers).folder.path


@pytest.fixture(scope="module")
def tokenizers(random_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizers alone: every network must come from the files."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).symlink_to(random_flux / name)
    return folder


def close(found: Tensor, wanted: Tensor, error: float) -> bool:
    return bool((found.float() - wanted).abs().max() <= error * wanted.abs().max() + 1e-3)


@pytest.mark.parametrize(
    ("component", "wanted"),
    [("transformer", files.transformer), ("text_encoder_2", files.t5), ("vae", files.vae)],
)
def test_every_form_holds_the_same_tensors(form: str, model: Path, component: str, wanted: object) -> None:
    assert callable(wanted)
    found, expected = dict(component_tensors(model / component)), wanted()
    assert found.keys() == expected.keys()
    assert all(close(found[name], tensor, files.ERRORS[form]) for name, tensor in expected.items())


def test_every_form_loads_as_a_transformer(form: str, model: Path) -> None:
    loaded = load_network(model, "transformer", FLOAT32, CPU).state_dict()
    assert all(close(loaded[name], tensor, files.ERRORS[form]) for name, tensor in files.transformer().items())


def test_flux_itself_has_the_tensors_that_are_asked_of_a_file(mini: ModelFolder) -> None:
    for config in (mini.transformer, FLUX_1):
        with torch.device("meta"):
            ours = Flux(FluxParams.from_config(config)).state_dict()
        expected = dict(transformer_tensors(config, {}))
        assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == expected
        # and from the sizes follows the configuration again
        assert FluxParams.from_config(describe_transformer(expected)) == FluxParams.from_config(config)


def test_every_form_loads_as_text_encoders_and_autoencoder(form: str, model: Path) -> None:
    clip = load_network(model, "text_encoder", FLOAT32, CPU).state_dict()
    assert all(torch.equal(clip[name], tensor) for name, tensor in files.clip().items())
    t5 = load_network(model, "text_encoder_2", FLOAT32, CPU).state_dict()
    assert all(close(t5[name], tensor, files.ERRORS[form]) for name, tensor in files.t5().items())
    vae = load_network(model, "vae", FLOAT32, CPU).state_dict()
    assert all(torch.equal(vae[name], tensor) for name, tensor in named_as_ours(files.vae().items(), 4))


@pytest.mark.parametrize(
    "kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
)
def test_blocks_of_every_kind_are_what_the_gguf_package_reads(kind: str, tmp_path: Path) -> None:
    quantized = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantized]
    # some kinds have no writer in Python: random blocks are blocks, but for scales that are no numbers
    blocks = np.random.default_rng(0).integers(0, 64, (6, 2 * block_bytes), dtype=np.uint8)
    path = tmp_path / "blocks.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_tensor("blocks", blocks, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [(name, tensor)] = source_tensors(WeightSource(path))
    assert (name, tuple(tensor.shape)) == ("blocks", (6, 2 * block))
    wanted = gguf.quants.dequantize(gguf.GGUFReader(path).tensors[0].data, quantized)
    assert np.array_equal(tensor.float().numpy(), np.asarray(wanted, np.float32).reshape(6, -1), equal_nan=True)
