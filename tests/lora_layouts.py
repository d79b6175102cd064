"""Random LoRAs on a real-width FLUX.1 block, written in every layout that trainers use, with the deltas they mean.

`dense_delta` forms the delta of a converted layer, to compare.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from schnell.adapters import ConvertedAdapter, Dora, Form, Lokr, convert_adapter

Array = npt.NDArray[Any]
Rows = slice | Array
WIDTH = 3072
RANK = 4
ALPHA = 3.0
_SWAPPED = np.concatenate([np.arange(WIDTH, 2 * WIDTH), np.arange(WIDTH)])


@dataclass(frozen=True)
class Layer:
    """One layer under a trainer's name: its size, and the diffusers modules with the rows that each takes."""

    out: int
    into: int
    parts: Mapping[str, Rows]


def _qkv(parent: str, names: tuple[str, str, str]) -> dict[str, Rows]:
    return {f"{parent}.{name}": slice(i * WIDTH, (i + 1) * WIDTH) for i, name in enumerate(names)}


def _whole(out: int, into: int, module: str) -> Layer:
    return Layer(out, into, {module: slice(None)})


_IMAGE_QKV = _qkv("transformer.transformer_blocks.0.attn", ("to_q", "to_k", "to_v"))
_TEXT_QKV = _qkv("transformer.transformer_blocks.0.attn", ("add_q_proj", "add_k_proj", "add_v_proj"))
_SINGLE_QKV = _qkv("transformer.single_transformer_blocks.0.attn", ("to_q", "to_k", "to_v"))

BFL: dict[str, Layer] = {
    "double_blocks.0.img_attn.qkv": Layer(3 * WIDTH, WIDTH, _IMAGE_QKV),
    "double_blocks.0.txt_mlp.2": _whole(WIDTH, 4 * WIDTH, "transformer.transformer_blocks.0.ff_context.net.2"),
    "double_blocks.0.img_attn.proj": _whole(WIDTH, WIDTH, "transformer.transformer_blocks.0.attn.to_out.0"),
    "single_blocks.0.linear1": Layer(
        7 * WIDTH,
        WIDTH,
        {**_SINGLE_QKV, "transformer.single_transformer_blocks.0.proj_mlp": slice(3 * WIDTH, 7 * WIDTH)},
    ),
    "single_blocks.0.linear2": _whole(WIDTH, 5 * WIDTH, "transformer.single_transformer_blocks.0.proj_out"),
    "final_layer.adaLN_modulation.1": Layer(2 * WIDTH, WIDTH, {"transformer.norm_out.linear": _SWAPPED}),
}
DIFFUSERS: dict[str, Layer] = {
    name: _whole(out, into, f"transformer.{name}")
    for name, out, into in (
        ("transformer_blocks.0.attn.to_q", WIDTH, WIDTH),
        ("transformer_blocks.0.attn.add_k_proj", WIDTH, WIDTH),
        ("transformer_blocks.0.ff.net.0.proj", 4 * WIDTH, WIDTH),
        ("single_transformer_blocks.0.attn.to_v", WIDTH, WIDTH),
        ("single_transformer_blocks.0.proj_mlp", 4 * WIDTH, WIDTH),
        ("single_transformer_blocks.0.proj_out", WIDTH, 5 * WIDTH),
        ("norm_out.linear", 2 * WIDTH, WIDTH),
    )
}
XLABS: dict[str, Layer] = {
    "double_blocks.0.processor.qkv_lora1": Layer(3 * WIDTH, WIDTH, _IMAGE_QKV),
    "double_blocks.0.processor.qkv_lora2": Layer(3 * WIDTH, WIDTH, _TEXT_QKV),
    "double_blocks.0.processor.proj_lora1": _whole(WIDTH, WIDTH, "transformer.transformer_blocks.0.attn.to_out.0"),
    "double_blocks.0.processor.proj_lora2": _whole(WIDTH, WIDTH, "transformer.transformer_blocks.0.attn.to_add_out"),
    "single_blocks.0.processor.qkv_lora": Layer(3 * WIDTH, WIDTH, _SINGLE_QKV),
}
CLIP: dict[str, Layer] = {
    "text_model.encoder.layers.3.self_attn.q_proj": _whole(768, 768, "text_encoder.encoder.layers.3.self_attn.q_proj"),
    "text_model.encoder.layers.3.mlp.fc1": _whole(3072, 768, "text_encoder.encoder.layers.3.mlp.fc1"),
}
T5: dict[str, Layer] = {
    f"encoder.block.2.{tail}": _whole(out, 4096, f"text_encoder_2.encoder.block.2.{tail}")
    for tail, out in (("layer.0.SelfAttention.q", 4096), ("layer.1.DenseReluDense.wi_0", 10240))
}


class Delta(Protocol):
    """What a LoRA adds to one layer's weight [out, in]."""

    def dense(self) -> Array:
        """The whole delta [out, in]: up to 66 million values."""
        ...

    def apply(self, inputs: Array) -> Array:
        """The outputs [n, out] of `inputs` [n, in], without the whole delta in memory."""
        ...


@dataclass(frozen=True)
class Product:
    """`up` [out, r] @ `down` [r, in]."""

    up: Array
    down: Array

    def dense(self) -> Array:
        return np.asarray(self.up @ self.down)

    def apply(self, inputs: Array) -> Array:
        return np.asarray(inputs @ self.down.T @ self.up.T)


@dataclass(frozen=True)
class Kronecker:
    """`rows` of the Kronecker product of `left` [a, b] and `right` [c, d]."""

    left: Array
    right: Array
    rows: Rows

    def dense(self) -> Array:
        return np.kron(self.left, self.right)[self.rows]

    def apply(self, inputs: Array) -> Array:
        blocks = inputs.reshape(len(inputs), self.left.shape[1], self.right.shape[1])
        return np.asarray((self.left @ blocks @ self.right.T).reshape(len(inputs), -1)[:, self.rows])


@dataclass(frozen=True)
class Hadamard:
    """The elementwise product of two products [out, r] @ [r, in], times `scale`."""

    first: tuple[Array, Array]
    second: tuple[Array, Array]
    scale: float

    def dense(self) -> Array:
        return self._rows(slice(None))

    def apply(self, inputs: Array) -> Array:
        # 256 rows of the delta at a time stay in the processor's cache
        starts = range(0, len(self.first[0]), 256)
        return np.concatenate([inputs @ self._rows(slice(start, start + 256)).T for start in starts], axis=1)

    def _rows(self, rows: slice) -> Array:
        (a1, b1), (a2, b2) = self.first, self.second
        return np.asarray((a1[rows] @ b1) * (a2[rows] @ b2) * np.float32(self.scale))


@dataclass(frozen=True)
class Stored:
    """A delta that the file holds as it is."""

    delta: Array

    def dense(self) -> Array:
        return self.delta

    def apply(self, inputs: Array) -> Array:
        return np.asarray(inputs @ self.delta.T)


@dataclass
class LoraFile:
    """A LoRA as tensors and metadata, and what it means: each canonical module's delta."""

    tensors: dict[str, Array] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    deltas: dict[str, Delta] = field(default_factory=dict)
    magnitudes: dict[str, Array] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        save_file(self.tensors, path, self.metadata)
        return path


def kohya(name: str) -> str:
    return name.replace(".", "_")


def _factors(rng: np.random.Generator, layer: Layer, rank: int = RANK) -> tuple[Array, Array]:
    up = rng.standard_normal((layer.out, rank), np.float32)
    return up, rng.standard_normal((rank, layer.into), np.float32)


def add_low_rank(
    file: LoraFile,
    layers: Mapping[str, Layer],
    *,
    name: Callable[[str], str],
    down: str,
    up: str,
    alpha: float | None = None,
    alpha_key: str = ".alpha",
    scale: float | None = None,
    magnitude: str | None = None,
    dtype: Any = np.float32,
    rank: int = RANK,
) -> LoraFile:
    rng = np.random.default_rng(len(file.tensors))
    factor = scale if scale is not None else (alpha / rank if alpha is not None else 1.0)
    for source, layer in layers.items():
        b, a = (values.astype(dtype) for values in _factors(rng, layer, rank))
        file.tensors[name(source) + down] = a
        file.tensors[name(source) + up] = b
        if alpha is not None:
            file.tensors[name(source) + alpha_key] = np.array(alpha, np.float32)
        wide_b, wide_a = b.astype(np.float32), a.astype(np.float32)
        for module, rows in layer.parts.items():
            file.deltas[module] = Product(wide_b[rows] * factor, wide_a)
        if magnitude is not None:
            values = rng.uniform(50, 60, layer.out).astype(np.float32)
            file.tensors[name(source) + magnitude] = values[:, None] if magnitude == ".dora_scale" else values
            file.magnitudes |= {module: values[rows] for module, rows in layer.parts.items()}
    return file


def add_lokr(file: LoraFile, layers: Mapping[str, Layer], name: Callable[[str], str], factor: int) -> LoraFile:
    rng = np.random.default_rng(7)
    for index, (source, layer) in enumerate(layers.items()):
        c, d = layer.out // factor, layer.into // factor
        w1 = rng.standard_normal((factor, factor), np.float32)
        stem = name(source)
        file.tensors[f"{stem}.lokr_w1"] = w1
        if index % 2:
            a, b = rng.standard_normal((c, RANK), np.float32), rng.standard_normal((RANK, d), np.float32)
            file.tensors |= {f"{stem}.lokr_w2_a": a, f"{stem}.lokr_w2_b": b}
            right, scale = a @ b, ALPHA / RANK
        else:
            right, scale = rng.standard_normal((c, d), np.float32), 1.0
            file.tensors[f"{stem}.lokr_w2"] = right
        file.tensors[f"{stem}.alpha"] = np.array(ALPHA, np.float32)
        for module, rows in layer.parts.items():
            file.deltas[module] = Kronecker(w1 * scale, right, rows)
    return file


def add_loha(file: LoraFile, layers: Mapping[str, Layer], name: Callable[[str], str], rank: int) -> LoraFile:
    rng = np.random.default_rng(8)
    for source, layer in layers.items():
        (a1, b1), (a2, b2) = _factors(rng, layer, rank), _factors(rng, layer, rank)
        stem = name(source)
        parts = {
            "hada_w1_a": a1,
            "hada_w1_b": b1,
            "hada_w2_a": a2,
            "hada_w2_b": b2,
            "alpha": np.array(ALPHA, np.float32),
        }
        file.tensors |= {f"{stem}.{part}": values for part, values in parts.items()}
        for module, rows in layer.parts.items():
            file.deltas[module] = Hadamard((a1[rows], b1), (a2[rows], b2), ALPHA / rank)
    return file


def add_difference(file: LoraFile, layers: Mapping[str, Layer], name: Callable[[str], str], rank: int) -> LoraFile:
    rng = np.random.default_rng(9)
    for source, layer in layers.items():
        up, down = _factors(rng, layer, rank)
        noise = rng.standard_normal((layer.out, layer.into), np.float32) * np.float32(0.02 * rank**0.5)
        delta = up @ down + noise
        file.tensors[f"{name(source)}.diff"] = delta
        for module, rows in layer.parts.items():
            file.deltas[module] = Stored(delta[rows])
    return file


def _only(layers: Mapping[str, Layer], *names: str) -> dict[str, Layer]:
    return {name: layers[name] for name in names}


def plain(prefix: str, layers: Mapping[str, Layer], **options: Any) -> LoraFile:
    options = {"down": ".lora_A.weight", "up": ".lora_B.weight"} | options
    return add_low_rank(LoraFile(), layers, name=lambda name: prefix + name, **options)


def _kohya(prefix: str, layers: Mapping[str, Layer], file: LoraFile | None = None, **options: Any) -> LoraFile:
    options = {"down": ".lora_down.weight", "up": ".lora_up.weight"} | options
    return add_low_rank(file or LoraFile(), layers, name=lambda name: prefix + kohya(name), **options)


def _peft_metadata(**fields: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in fields.items()})}


def _with_metadata(file: LoraFile, metadata: dict[str, str]) -> LoraFile:
    file.metadata |= metadata
    return file


_SMALL_BFL = _only(BFL, "double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")
_ONE = _only(DIFFUSERS, "transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out")
_UPDOWN = {"down": ".lora.down.weight", "up": ".lora.up.weight"}
_COMFY = {"down": ".lora_down.weight", "up": ".lora_up.weight"}
_XLABS = {"down": ".down.weight", "up": ".up.weight"}


def _nearly_low_rank() -> LoraFile:
    file = plain("transformer.", _only(DIFFUSERS, "transformer_blocks.0.attn.to_q"), rank=200)
    down, up = (file.tensors[f"transformer.transformer_blocks.0.attn.to_q.lora_{part}.weight"] for part in "AB")
    down[100:] *= 0.01
    file.deltas["transformer.transformer_blocks.0.attn.to_q"] = Product(up, down)
    return file


#: Layouts whose conversion is exact, by name.
EXACT: dict[str, Callable[[], LoraFile]] = {
    "diffusers": lambda: plain("transformer.", DIFFUSERS),
    "diffusers, alpha tensors": lambda: plain("transformer.", DIFFUSERS, alpha=ALPHA),
    "diffusers, alpha in PEFT metadata": lambda: _with_metadata(
        plain("transformer.", _ONE, scale=ALPHA / RANK), _peft_metadata(r=RANK, lora_alpha=ALPHA)
    ),
    "diffusers, rank-stabilised": lambda: _with_metadata(
        plain("transformer.", _ONE, scale=ALPHA / RANK**0.5), _peft_metadata(lora_alpha=ALPHA, use_rslora=True)
    ),
    "diffusers, alpha by pattern": lambda: _with_metadata(
        plain("transformer.", _only(DIFFUSERS, "transformer_blocks.0.attn.to_q"), scale=8.0 / RANK),
        _peft_metadata(lora_alpha=ALPHA, alpha_pattern={"attn.to_q": 8}),
    ),
    "diffusers .lora.down": lambda: plain("transformer.", DIFFUSERS, **_UPDOWN),
    "diffusers bf16": lambda: plain("transformer.", _ONE, alpha=ALPHA, dtype=ml_dtypes.bfloat16),
    "diffusers fp16": lambda: plain("transformer.", _ONE, alpha=1.0, dtype=np.float16),
    "diffusers fp64": lambda: plain("transformer.", _ONE, dtype=np.float64),
    "PEFT DoRA": lambda: plain("transformer.", _ONE, magnitude=".lora_magnitude_vector"),
    "PEFT DoRA, default adapter": lambda: plain(
        "transformer.", _ONE, down=".lora_A.default.weight", up=".lora_B.default.weight",
        magnitude=".lora_magnitude_vector.default.weight",
    ),
    "unprefixed diffusers": lambda: plain("", DIFFUSERS),
    "base_model.model diffusers": lambda: plain("base_model.model.", DIFFUSERS),
    "base_model.model BFL": lambda: plain("base_model.model.", BFL),
    "Kohya": lambda: _kohya("lora_unet_", BFL, alpha=ALPHA),
    "Kohya without alpha": lambda: _kohya("lora_unet_", BFL),
    "Kohya + lora_te1": lambda: _kohya("lora_te1_", CLIP, _kohya("lora_unet_", _SMALL_BFL, alpha=ALPHA), alpha=ALPHA),
    "Kohya + lora_te3": lambda: _kohya("lora_te3_", T5, _kohya("lora_unet_", _SMALL_BFL, alpha=ALPHA), alpha=ALPHA),
    "Kohya DoRA": lambda: _kohya("lora_unet_", BFL, alpha=ALPHA, magnitude=".dora_scale"),
    "XLabs": lambda: plain("", XLABS, **_XLABS),
    "XLabs under diffusion_model": lambda: plain("diffusion_model.", XLABS, **_XLABS),
    "diffusion_model lora_down": lambda: plain("diffusion_model.", BFL, alpha=ALPHA, **_COMFY),
    "diffusion_model lora_A": lambda: plain("diffusion_model.", BFL),
    "diffusion_model diffusers names": lambda: plain("diffusion_model.", _ONE),
    "bare double_blocks lora_A": lambda: plain("", BFL),
    "ComfyUI text encoders": lambda: add_low_rank(
        plain("text_encoders.clip_l.transformer.", CLIP), T5,
        name=lambda name: f"text_encoders.t5xxl.transformer.{name}", down=".lora_A.weight", up=".lora_B.weight",
    ),
    "OneTrainer": lambda: _kohya("lora_transformer_", DIFFUSERS, alpha=ALPHA),
    "OneTrainer + text encoders": lambda: _kohya(
        "lora_te2_", T5, _kohya("lora_te1_", CLIP, _kohya("lora_transformer_", _ONE, alpha=1), alpha=1), alpha=1
    ),
    "LyCORIS LoKr, Kohya names": lambda: add_lokr(LoraFile(), BFL, lambda name: f"lora_unet_{kohya(name)}", 16),
    "LyCORIS LoKr, factor 4": lambda: add_lokr(LoraFile(), _SMALL_BFL, lambda name: f"lora_unet_{kohya(name)}", 4),
    "LyCORIS LoKr, lycoris_": lambda: add_lokr(LoraFile(), DIFFUSERS, lambda name: f"lycoris_{kohya(name)}", 16),
    "LyCORIS LoKr, transformer.": lambda: add_lokr(LoraFile(), DIFFUSERS, lambda name: f"transformer.{name}", 8),
    "LyCORIS LoHa of rank 4": lambda: add_loha(LoraFile(), BFL, lambda name: f"lora_unet_{kohya(name)}", 4),
}  # fmt: skip

#: Layouts that become a truncated SVD, by name.
APPROXIMATE: dict[str, Callable[[], LoraFile]] = {
    ".diff, Kohya names": lambda: add_difference(
        LoraFile(), _only(BFL, "double_blocks.0.img_attn.qkv"), lambda name: f"lora_unet_{kohya(name)}", 8
    ),
    ".diff, diffusion_model": lambda: add_difference(
        LoraFile(), _only(BFL, "double_blocks.0.img_attn.proj"), lambda name: f"diffusion_model.{name}", 24
    ),
    "LoRA of rank 200, nearly 100": _nearly_low_rank,
}


def dense_delta(form: Form, weight: Array | None = None) -> Array:
    """The whole delta [out, in] in float32 at scale 1; DoRA's for a base layer's `weight`, or else its b @ a alone."""
    if isinstance(form, Lokr):
        right = _exact(form.w2) if form.w2 is not None else _exact(form.w2_a) @ _exact(form.w2_b)
        product: Array = np.kron(_exact(form.w1), right)[form.start : form.start + form.out_features]
        return product
    low_rank: Array = _exact(form.b) @ _exact(form.a)
    if weight is None or not isinstance(form, Dora):
        return low_rank
    moved: Array = weight + low_rank
    merged: Array = moved * (_exact(form.magnitude) / np.linalg.norm(moved, axis=1))[:, None]
    return merged - weight


def _exact(values: Array | None) -> Array:
    return np.asarray(values, np.float32)


@dataclass(frozen=True)
class ConvertedLayout:
    """A LoRA in one layout, the file that it was written to, and what that was converted to."""

    file: LoraFile
    source: Path
    adapter: ConvertedAdapter


def convert_layout(layout: str, folder: Path) -> ConvertedLayout:
    file = (EXACT | APPROXIMATE)[layout]()
    source = file.save(folder / "source.safetensors")
    return ConvertedLayout(file, source, convert_adapter(source, folder / "cache"))
