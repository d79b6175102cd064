"""One tiny FLUX in every form that people have it in: a folder, single files, all in one, fp8, GGUF."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import autoencoders
from schnell.models.network_tensors import CONFIGURED_PARTS

Tensors = dict[str, Tensor]

TRANSFORMER: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 64,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "num_layers": 1,
    "num_single_layers": 2,
}
CLIP: Mapping[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "max_position_embeddings": 16,
}
T5: Mapping[str, Any] = {
    "vocab_size": 32,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 32,
}


def _random(component: str, config: Mapping[str, Any]) -> Tensors:
    generator = torch.Generator().manual_seed(len(component))
    _, expected = CONFIGURED_PARTS[component]
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in expected(config, {})}


def transformer() -> Tensors:
    return _random("transformer", TRANSFORMER)


def clip() -> Tensors:
    return _random("text_encoder", CLIP)


def t5() -> Tensors:
    return _random("text_encoder_2", T5)


def vae() -> Tensors:
    return autoencoders.as_black_forest_labs(autoencoders.random_stock(autoencoders.config()).state_dict())


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def all_in_one(scaled: bool = False) -> Tensors:
    """ComfyUI's checkpoint of all four networks."""
    return {
        **prefixed("model.diffusion_model.", to_fp8(transformer(), scaled=scaled)),
        **prefixed("text_encoders.clip_l.transformer.text_model.", clip()),
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.eye(64),
        **prefixed("text_encoders.t5xxl.transformer.", to_fp8(t5(), scaled=scaled)),
        "text_encoders.t5xxl.logit_scale": torch.tensor(4.6),
        **prefixed("vae.", vae()),
    }


def to_fp8(tensors: Mapping[str, Tensor], *, scaled: bool) -> Tensors:
    """Matrices in fp8, each with a scale if wanted, as ComfyUI's scaled checkpoints have them."""
    made: Tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if scaled else {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            made[name] = tensor.to(torch.bfloat16)
            continue
        scale = tensor.abs().max() / 448 if scaled else torch.tensor(1.0)
        made[name] = (tensor / scale).to(torch.float8_e4m3fn)
        if scaled:
            made[name.removesuffix("weight") + "scale_weight"] = scale.float()
    return made


def write_gguf(path: Path, tensors: Mapping[str, Tensor], kind: str, architecture: str = "flux") -> Path:
    """A GGUF file by the `gguf` package's own writer; what has no whole blocks stays in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokens", ["a", "b", "c"])
    writer.add_uint32("general.file_type", 0)
    quantized = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[quantized]
    for name, tensor in tensors.items():
        values = tensor.numpy().astype(np.float32)
        if values.ndim == 2 and values.shape[-1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


#: Files that hold each network, by what people call the form.
SINGLE: Mapping[str, Callable[[Path], list[Path]]] = {
    "one file a network": lambda folder: [
        write(folder / "flux1-schnell.safetensors", transformer()),
        write(folder / "clip_l.safetensors", prefixed("text_model.", clip())),
        write(folder / "t5xxl.safetensors", t5()),
        write(folder / "ae.safetensors", vae()),
    ],
    "GGUF F16": lambda folder: [
        write_gguf(folder / "flux1-schnell-F16.gguf", transformer(), "F16"),
        write(folder / "clip_l.safetensors", clip()),
        write_gguf(folder / "t5-F16.gguf", t5_in_llama_cpp(), "F16", "t5encoder"),
        write(folder / "ae.safetensors", vae()),
    ],
    "GGUF Q8_0": lambda folder: [
        write_gguf(folder / "flux1-schnell-Q8_0.gguf", transformer(), "Q8_0"),
        write(
            folder / "rest.safetensors",
            {
                **prefixed("text_encoders.clip_l.transformer.text_model.", clip()),
                **prefixed("text_encoders.t5xxl.transformer.", t5()),
                **prefixed("first_stage_model.", vae()),
            },
        ),
    ],
    "all in one, fp8": lambda folder: [write(folder / "flux1-schnell-fp8.safetensors", all_in_one())],
    "all in one, scaled fp8": lambda folder: [write(folder / "scaled.safetensors", all_in_one(scaled=True))],
}
#: The largest error of a matrix's numbers against the largest of them.
ERRORS: Mapping[str, float] = {
    "one file a network": 0,
    "GGUF F16": 1e-3,
    "GGUF Q8_0": 1 / 127,
    "all in one, fp8": 1 / 16,
    "all in one, scaled fp8": 1 / 16,
}


def t5_in_llama_cpp() -> Tensors:
    """T5's tensors as llama.cpp's converter names them."""
    names = {
        "shared": "token_embd",
        "encoder.final_layer_norm": "enc.output_norm",
        "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
        "layer.0.SelfAttention.": "attn_",
        "layer.0.layer_norm": "attn_norm",
        "layer.1.DenseReluDense.wi_0": "ffn_gate",
        "layer.1.DenseReluDense.wi_1": "ffn_up",
        "layer.1.DenseReluDense.wo": "ffn_down",
        "layer.1.layer_norm": "ffn_norm",
        "encoder.block.": "enc.blk.",
    }

    def renamed(name: str) -> str:
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    return {renamed(name): tensor for name, tensor in t5().items()}
