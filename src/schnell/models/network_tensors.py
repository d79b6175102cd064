"""FLUX's four networks as lists of tensors: a configuration from the shapes in a file, and the shapes that follow.

Names: Black Forest Labs' for the transformer, transformers' for the text encoders, llama.cpp's for a T5 in GGUF; the
autoencoder's are in `autoencoder_tensors`. What shapes do not tell is what every FLUX has: heads of 64 in the text
encoders, and feed-forward layers of four widths.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from schnell.models.autoencoder_tensors import autoencoder_tensors, describe_autoencoder

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Config = Mapping[str, Any]
Named = Iterator[tuple[str, Shape]]

_TIME_CHANNELS: Final = 256
_TEXT_HEAD: Final = 64


def _count(shapes: Shapes, pattern: str) -> int:
    """How many blocks there are whose number is the pattern's group."""
    return 1 + max((int(found[1]) for name in shapes if (found := re.match(pattern, name))), default=-1)


def _layer(name: str, outputs: int, inputs: int) -> Named:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def describe_transformer(shapes: Shapes) -> Config:
    """A transformer's `config.json`, as diffusers writes it."""
    width, channels = shapes["img_in.weight"]
    [head] = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    # FLUX turns an eighth of a head's channels by the picture's number, the rest by row and column in equal parts,
    # which are pairs
    if head % 32:
        raise ValueError(f"its heads have {head} channels")
    first = head // 8
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": _count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": _count(shapes, r"single_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": False,
        "axes_dims_rope": [first, (head - first) // 2, (head - first) // 2],
    }


def transformer_tensors(config: Config, _: Shapes) -> Named:
    """The tensors of a transformer with this configuration, by Black Forest Labs' names."""
    width, head = config["num_attention_heads"] * config["attention_head_dim"], config["attention_head_dim"]
    yield from _layer("img_in", width, config["in_channels"])
    yield from _layer("txt_in", width, config["joint_attention_dim"])
    for name, inputs in (("time_in", _TIME_CHANNELS), ("vector_in", config["pooled_projection_dim"])):
        yield from _layer(f"{name}.in_layer", width, inputs)
        yield from _layer(f"{name}.out_layer", width, width)
    for index in range(config["num_layers"]):
        for stream in ("img", "txt"):
            block = f"double_blocks.{index}.{stream}"
            yield from _layer(f"{block}_mod.lin", 6 * width, width)
            yield from _layer(f"{block}_attn.qkv", 3 * width, width)
            yield from _layer(f"{block}_attn.proj", width, width)
            yield from _layer(f"{block}_mlp.0", 4 * width, width)
            yield from _layer(f"{block}_mlp.2", width, 4 * width)
            yield from ((f"{block}_attn.norm.{part}_norm.scale", (head,)) for part in ("query", "key"))
    for index in range(config["num_single_layers"]):
        block = f"single_blocks.{index}"
        yield from _layer(f"{block}.modulation.lin", 3 * width, width)
        yield from _layer(f"{block}.linear1", 7 * width, width)
        yield from _layer(f"{block}.linear2", width, 5 * width)
        yield from ((f"{block}.norm.{part}_norm.scale", (head,)) for part in ("query", "key"))
    yield from _layer("final_layer.adaLN_modulation.1", 2 * width, width)
    yield from _layer("final_layer.linear", config["in_channels"], width)


def describe_clip(shapes: Shapes) -> Config:
    """The `config.json` of CLIP's text encoder."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "architectures": ["CLIPTextModel"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // _TEXT_HEAD),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        # OpenAI's first configuration says 2 and means the largest id, which is the end of text in its vocabulary
        "eos_token_id": 2,
    }


def clip_tensors(config: Config, _: Shapes) -> Named:
    """The tensors of a CLIP text encoder, without `text_model.` before their names."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.token_embedding.weight", (config["vocab_size"], width)
    yield "embeddings.position_embedding.weight", (config["max_position_embeddings"], width)
    for index in range(config["num_hidden_layers"]):
        block = f"encoder.layers.{index}"
        for part in ("q", "k", "v", "out"):
            yield from _layer(f"{block}.self_attn.{part}_proj", width, width)
        yield from _layer(f"{block}.mlp.fc1", hidden, width)
        yield from _layer(f"{block}.mlp.fc2", width, hidden)
        for norm in ("layer_norm1", "layer_norm2"):
            yield from ((f"{block}.{norm}.{kind}", (width,)) for kind in ("weight", "bias"))
    yield from ((f"final_layer_norm.{kind}", (width,)) for kind in ("weight", "bias"))


#: llama.cpp's names of T5's tensors, before `.weight`; `{}` is a block's number.
_T5_GGUF: Final = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
    "enc.blk.{}.attn_q": "encoder.block.{}.layer.0.SelfAttention.q",
    "enc.blk.{}.attn_k": "encoder.block.{}.layer.0.SelfAttention.k",
    "enc.blk.{}.attn_v": "encoder.block.{}.layer.0.SelfAttention.v",
    "enc.blk.{}.attn_o": "encoder.block.{}.layer.0.SelfAttention.o",
    "enc.blk.{}.attn_rel_b": "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias",
    "enc.blk.{}.attn_norm": "encoder.block.{}.layer.0.layer_norm",
    "enc.blk.{}.ffn_gate": "encoder.block.{}.layer.1.DenseReluDense.wi_0",
    "enc.blk.{}.ffn_up": "encoder.block.{}.layer.1.DenseReluDense.wi_1",
    "enc.blk.{}.ffn_down": "encoder.block.{}.layer.1.DenseReluDense.wo",
    "enc.blk.{}.ffn_norm": "encoder.block.{}.layer.1.layer_norm",
}
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")


def t5_name(name: str) -> str:
    """transformers' name of a T5 encoder's tensor, from that name or llama.cpp's."""
    bare, _, kind = name.rpartition(".")
    number = _NUMBER.search(bare)
    known = _T5_GGUF.get(_NUMBER.sub("{}", bare, count=1))
    if known is None:
        # files of the encoder alone have the embedding under its second name
        return "shared.weight" if name == "encoder.embed_tokens.weight" else name
    return f"{known.format(number[0] if number else '')}.{kind}"


def describe_t5(shapes: Shapes) -> Config:
    """The `config.json` of T5's encoder."""
    shapes = {t5_name(name): shape for name, shape in shapes.items()}
    vocabulary, width = shapes["shared.weight"]
    first = "encoder.block.0.layer"
    buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
    return {
        "architectures": ["T5EncoderModel"],
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": _count(shapes, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
    }


def t5_tensors(config: Config, found: Shapes) -> Named:
    """The tensors of a T5 encoder under the names that `found` gives them."""
    shown: dict[str, list[str]] = {}
    for name in found:
        shown.setdefault(t5_name(name), []).append(name)
    for name, shape in _t5_tensors(config):
        yield from ((each, shape) for each in shown.get(name, [name]))


def _t5_tensors(config: Config) -> Named:
    width, hidden, inner = config["d_model"], config["d_ff"], config["num_heads"] * config["d_kv"]
    yield "shared.weight", (config["vocab_size"], width)
    for index in range(config["num_layers"]):
        block = f"encoder.block.{index}.layer"
        yield from ((f"{block}.0.SelfAttention.{part}.weight", (inner, width)) for part in "qkv")
        yield f"{block}.0.SelfAttention.o.weight", (width, inner)
        yield from ((f"{block}.1.DenseReluDense.{part}.weight", (hidden, width)) for part in ("wi_0", "wi_1"))
        yield f"{block}.1.DenseReluDense.wo.weight", (width, hidden)
        yield from ((f"{block}.{part}.layer_norm.weight", (width,)) for part in range(2))
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield bias, (config["relative_attention_num_buckets"], config["num_heads"])
    yield "encoder.final_layer_norm.weight", (width,)


#: By component: the configuration that shapes tell, and the tensors that it asks for (given what was found).
CONFIGURED_PARTS: Final[Mapping[str, tuple[Callable[[Shapes], Config], Callable[[Config, Shapes], Named]]]] = {
    "transformer": (describe_transformer, transformer_tensors),
    "text_encoder": (describe_clip, clip_tensors),
    "text_encoder_2": (describe_t5, t5_tensors),
    "vae": (describe_autoencoder, autoencoder_tensors),
}
