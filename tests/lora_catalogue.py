"""Every layout and method of LoRA files that trainers write, and what becomes of each: the table of docs/lora-files.md.

`python tests/lora_catalogue.py` writes the table into the page; a test fails while the page has another one.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lora_layouts import (
    ALPHA,
    APPROXIMATE,
    BFL,
    DIFFUSERS,
    EXACT,
    RANK,
    WIDTH,
    LoraFile,
    add_loha,
    add_lokr,
    add_low_rank,
    kohya,
    plain,
)

PAGE = Path(__file__).parents[1] / "docs" / "lora-files.md"
BEGIN, END = "<!-- from tests/lora_catalogue.py -->\n", "<!-- end -->\n"
STEM = "lora_unet_double_blocks_0_img_attn_proj"
TO_Q = "transformer.transformer_blocks.0.attn.to_q"
_ONE = {"transformer_blocks.0.attn.to_q": DIFFUSERS["transformer_blocks.0.attn.to_q"]}
_PROJ = {"double_blocks.0.img_attn.proj": BFL["double_blocks.0.img_attn.proj"]}
Build = Callable[[], LoraFile]


@dataclass(frozen=True)
class Entry:
    """A layout: who writes it, a key of it, and the words of its refusal (None: it is read)."""

    name: str
    writer: str
    build: Build
    refusal: str | None = None
    config: Mapping[str, Any] | None = None
    warning: str | None = None
    #: Layouts of `lora_layouts` are drawn in its own tests.
    known: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        """A key that shows what is particular about it."""
        keys = sorted(self.build().tensors, key=lambda key: (key.endswith("alpha"), key))
        return next((key for key in keys if self.refusal and re.search(self.refusal.split()[0], key)), keys[0])


def _known(name: str, writer: str) -> Entry:
    return Entry(name, writer, (EXACT | APPROXIMATE)[name], known=True)


def _with(file: LoraFile, more: Mapping[str, Any] | None = None, **metadata: str) -> LoraFile:
    file.tensors |= more or {}
    file.metadata |= metadata
    return file


def _lora() -> LoraFile:
    return plain("transformer.", _ONE)


def _kohya_lora() -> LoraFile:
    return plain("lora_unet_", {kohya(name): layer for name, layer in _PROJ.items()}, **_KOHYA)


_KOHYA: dict[str, Any] = {"down": ".lora_down.weight", "up": ".lora_up.weight"}


def _only(tensors: Mapping[str, Any]) -> Build:
    return lambda: LoraFile({name: values() if callable(values) else values for name, values in tensors.items()})


def _ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def _other_model(module: str, width: int) -> Build:
    return _only({f"{module}.lora_down.weight": _ones(4, width), f"{module}.lora_up.weight": _ones(8, 4)})


def _convolution() -> LoraFile:
    file = _lora()
    file.tensors = {name: values[:, :, None, None] for name, values in file.tensors.items()}
    return file


def _endless_alpha() -> LoraFile:
    file = add_lokr(LoraFile(), _ONE, lambda name: f"lycoris_{kohya(name)}", 16)
    return _with(file, {name: np.array(np.inf, np.float16) for name in file.tensors if name.endswith("alpha")})


def _nan() -> LoraFile:
    file = _lora()
    next(iter(file.tensors.values()))[0, 0] = np.nan
    return file


def _zero() -> LoraFile:
    file = _lora()
    file.tensors = {name: np.zeros_like(values) for name, values in file.tensors.items()}
    return file


READ = (
    _known("diffusers", "diffusers, ai-toolkit, fal, Replicate's trainer"),
    _known("diffusers, alpha tensors", "SimpleTuner"),
    _known("diffusers, alpha in PEFT metadata", "diffusers since 0.34"),
    _known("diffusers, rank-stabilised", "PEFT with use_rslora"),
    _known("diffusers, alpha by pattern", "PEFT with alpha_pattern"),
    _known("diffusers .lora.down", "older diffusers"),
    _known("diffusers bf16", "ai-toolkit"),
    _known("diffusers fp16", "diffusers, fp16"),
    _known("diffusers fp64", "scripts that merge LoRAs"),
    _known("PEFT DoRA", "PEFT with use_dora"),
    _known("PEFT DoRA, default adapter", "PEFT's get_peft_model_state_dict, saved by hand"),
    _known("unprefixed diffusers", "PEFT, saved by hand"),
    _known("base_model.model diffusers", "PEFT"),
    _known("base_model.model BFL", "PEFT around Black Forest Labs' own code"),
    _known("Kohya", "sd-scripts, FluxGym, Civitai's trainer"),
    _known("Kohya without alpha", "scripts that extract LoRAs"),
    _known("Kohya + lora_te1", "sd-scripts with CLIP"),
    _known("Kohya + lora_te3", "sd-scripts with T5"),
    _known("Kohya DoRA", "sd-scripts with LyCORIS' dora_wd"),
    _known("XLabs", "XLabs' trainer"),
    _known("XLabs under diffusion_model", "XLabs' files, re-saved by ComfyUI"),
    _known("diffusion_model lora_down", "ComfyUI's nodes"),
    _known("diffusion_model lora_A", "ComfyUI, diffusion-pipe"),
    _known("diffusion_model diffusers names", "converters"),
    _known("bare double_blocks lora_A", "Black Forest Labs' naming"),
    _known("ComfyUI text encoders", "ComfyUI, with both text encoders"),
    _known("OneTrainer", "OneTrainer"),
    _known("OneTrainer + text encoders", "OneTrainer with text encoders"),
    _known("LyCORIS LoKr, Kohya names", "sd-scripts with LyCORIS"),
    _known("LyCORIS LoKr, factor 4", "sd-scripts with LyCORIS, small factor"),
    _known("LyCORIS LoKr, lycoris_", "SimpleTuner"),
    _known("LyCORIS LoKr, transformer.", "ai-toolkit"),
    _known("LyCORIS LoHa of rank 4", "sd-scripts with LyCORIS"),
    _known(".diff, Kohya names", "LyCORIS full"),
    _known(".diff, diffusion_model", "ComfyUI's extraction"),
    _known("LoRA of rank 200, nearly 100", "trainers with a large rank"),
    Entry(
        "torch.compile around the model",
        "trainers that save a compiled model",
        lambda: plain("transformer._orig_mod.", _ONE),
    ),
    Entry(
        "PEFT inside transformer.",
        "trainers that prefix PEFT's names",
        lambda: plain("transformer.base_model.model.", _ONE),
    ),
    Entry("PEFT around a pipeline", "PEFT, saved by hand", lambda: plain("base_model.model.transformer.", _ONE)),
    Entry("distributed training", "DDP, saved by hand", lambda: plain("module.", _ONE)),
    Entry(
        "PEFT, named adapter",
        "PEFT with an adapter name",
        lambda: plain("transformer.", _ONE, down=".lora_A.style.weight", up=".lora_B.style.weight"),
    ),
    Entry(
        "PEFT with adapter_config.json",
        "PEFT's save_pretrained",
        lambda: plain("base_model.model.", _ONE, scale=ALPHA / RANK),
        config={"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "init_lora_weights": "gaussian"},
    ),
    Entry(
        "PEFT with EVA's start",
        "PEFT with init_lora_weights eva",
        _lora,
        config={"peft_type": "LORA", "init_lora_weights": "eva"},
    ),
    Entry("1x1 convolutions", "trainers that write linear layers so", _convolution),
    Entry(
        "fp8 values without scales",
        "files shrunk for ComfyUI",
        lambda: plain("diffusion_model.", _PROJ, dtype=ml_dtypes.float8_e4m3fn),
    ),
    Entry("LoKr of whole factors, alpha infinite", "LyCORIS with network_dim 1e8", _endless_alpha),
    Entry(
        "LoKr under diffusion_model",
        "ComfyUI, ai-toolkit",
        lambda: add_lokr(LoraFile(), _PROJ, lambda name: f"diffusion_model.{name}", 8),
    ),
    Entry(
        "LoHa, diffusers names",
        "LyCORIS around diffusers",
        lambda: add_loha(LoraFile(), _ONE, lambda name: f"lycoris_{kohya(name)}", 3),
    ),
    Entry(
        "LoRA and LoKr in one file",
        "merging scripts",
        lambda: add_lokr(_kohya_lora(), _ONE, lambda name: f"lycoris_{kohya(name)}", 16),
    ),
    Entry(
        "made for Chroma, by its metadata",
        "diffusion-pipe",
        lambda: _with(_lora(), None, **{"modelspec.architecture": "chroma/lora"}),
        warning="made for Chroma",
    ),
    Entry(
        "captions in the metadata (9 MB)",
        "sd-scripts with ss_tag_frequency",
        lambda: _with(_lora(), None, ss_tag_frequency="x" * 9_000_000),
    ),
)

REFUSED = (
    Entry(
        "OFT (Kohya)",
        "sd-scripts' oft network",
        _only(
            {
                "oft_unet_single_blocks_0_linear1.oft_blocks.0": _ones(2, 64, 64),
                "oft_unet_single_blocks_0_linear1.alpha": _ones(),
            }
        ),
        "oft_blocks",
    ),
    Entry(
        "OFT (LyCORIS)",
        "LyCORIS diag-oft",
        _only({f"{STEM}.oft_blocks": _ones(4, 64, 64), f"{STEM}.alpha": _ones()}),
        "oft_blocks",
    ),
    Entry("OFT (PEFT)", "PEFT's OFT", _only({f"{TO_Q}.oft_R.weight": _ones(8, 496)}), "oft_R"),
    Entry("BOFT (PEFT)", "PEFT's BOFT", _only({f"{TO_Q}.boft_R.weight": _ones(2, 8, 8)}), "boft_R"),
    Entry(
        "GLoRA",
        "LyCORIS glora",
        _only({f"{STEM}.{part}.weight": _ones(4, 4) for part in ("a1", "a2", "b1", "b2")} | {f"{STEM}.alpha": _ones()}),
        "a1.weight is not read .*GLoRA",
    ),
    Entry(
        "(IA)³ (LyCORIS)",
        "LyCORIS ia3",
        _only({f"{STEM}.weight": _ones(1, WIDTH), f"{STEM}.on_input": lambda: np.array(True)}),
        "on_input",
    ),
    Entry("(IA)³ (PEFT)", "PEFT's IA3", _only({f"{TO_Q}.ia3_l": _ones(WIDTH, 1)}), "ia3_l"),
    Entry(
        "VeRA",
        "PEFT's VeRA",
        _only({f"{TO_Q}.vera_lambda_b": _ones(WIDTH), f"{TO_Q}.vera_lambda_d": _ones(8)}),
        "vera_lambda",
    ),
    Entry("HRA", "PEFT's HRA", _only({f"{TO_Q}.hra_u": _ones(WIDTH, 8)}), "hra_u"),
    Entry("LyCORIS with use_scalar", "LyCORIS", lambda: _with(_kohya_lora(), {f"{STEM}.scalar": _ones()}), "scalar"),
    Entry(
        "LyCORIS with train_norm", "LyCORIS", lambda: _with(_kohya_lora(), {f"{STEM}.w_norm": _ones(WIDTH)}), "w_norm"
    ),
    Entry(
        "Tucker decomposition",
        "LyCORIS with use_tucker",
        lambda: _with(_kohya_lora(), {f"{STEM}.lora_mid.weight": _ones(4, 4, 3, 3)}),
        "lora_mid",
    ),
    Entry(
        "fp8 with scales",
        "shrunk files",
        lambda: _with(plain("transformer.", _ONE), {f"{TO_Q}.lora_A.weight_scale": _ones()}),
        "weight_scale",
    ),
    Entry(
        "a LoRA with biases",
        "PEFT with lora_bias",
        lambda: _with(_lora(), {f"{TO_Q}.lora_B.bias": _ones(WIDTH)}),
        "lora_B.bias is not read .*biases",
    ),
    Entry(
        "PEFT's modules_to_save",
        "PEFT",
        lambda: _with(_lora(), {"transformer.modules_to_save.x_embedder.weight": _ones(WIDTH, 64)}),
        "modules_to_save",
    ),
    Entry(
        "replaced layers",
        "ComfyUI's control LoRAs",
        lambda: _with(_kohya_lora(), {"diffusion_model.img_in.set_weight": _ones(WIDTH, 64)}),
        "set_weight",
    ),
    Entry(
        "control LoRA (Depth, Canny)",
        "Black Forest Labs",
        _only(
            {
                "double_blocks.0.img_attn.proj.lora_A.weight": _ones(4, WIDTH),
                "double_blocks.0.img_attn.proj.lora_B.weight": _ones(WIDTH, 4),
                "double_blocks.0.img_attn.proj.lora_B.bias": _ones(WIDTH),
                "double_blocks.0.img_attn.norm.query_norm.scale": _ones(128),
            }
        ),
        "FLUX.1 Depth or Canny",
    ),
    Entry(
        "DoRA per input",
        "OneTrainer, old LyCORIS",
        lambda: _with(_kohya_lora(), {f"{STEM}.dora_scale": _ones(1, WIDTH)}),
        "one per input",
    ),
    Entry(
        "bias differences",
        "LyCORIS full",
        lambda: _with(_kohya_lora(), {f"{STEM}.diff_b": _ones(WIDTH)}),
        "changes a bias",
    ),
    Entry(
        "3x3 convolutions",
        "LoCon for U-Nets",
        lambda: LoraFile(
            {f"{STEM}.lora_down.weight": _ones(4, WIDTH, 3, 3), f"{STEM}.lora_up.weight": _ones(WIDTH, 4, 1, 1)}
        ),
        "targets a convolution",
    ),
    Entry(
        "a misspelt layer",
        "hand-made scripts",
        lambda: add_low_rank(
            LoraFile(),
            _PROJ,
            name=lambda name: f"lora_unet_{kohya(name)}_",
            down=".lora_down.weight",
            up=".lora_up.weight",
        ),
        "proj_",
    ),
    Entry(
        "half of a module",
        "cut files",
        _only({f"{STEM}.lora_down.weight": _ones(4, WIDTH)}),
        "is incomplete: it has only down",
    ),
    Entry("NaN", "diverged trainings", _nan, "not numbers"),
    Entry("all zeros", "trainings that never began", _zero, "changes nothing"),
    Entry(
        "a whole model",
        "checkpoints",
        _only(
            {f"double_blocks.0.{name}.weight": _ones(2, 2) for name in ("img_attn.qkv", "img_attn.proj", "img_mlp.0")}
        ),
        "a whole model, not a LoRA",
    ),
    Entry("textual inversion", "diffusers, ComfyUI", _only({"clip_l": _ones(4, 768)}), "clip_l"),
    Entry("an optimizer's state", "trainers' checkpoints", _only({f"{TO_Q}.exp_avg": _ones(4, 4)}), "exp_avg"),
    Entry(
        "PiSSA",
        "PEFT with init_lora_weights pissa",
        _lora,
        "pissa",
        config={"peft_type": "LORA", "init_lora_weights": "pissa_niter_16"},
    ),
    Entry(
        "OLoRA",
        "PEFT with init_lora_weights olora",
        _lora,
        "olora",
        config={"peft_type": "LORA", "init_lora_weights": "olora"},
    ),
    Entry("a configuration of another method", "PEFT", _lora, "peft_type", config={"peft_type": "VERA"}),
    Entry(
        "FLUX.2, by its metadata",
        "sd-scripts",
        lambda: _with(_lora(), None, ss_base_model_version="flux2"),
        "made for FLUX.2",
    ),
    Entry(
        "SDXL, by its metadata",
        "sd-scripts",
        lambda: _with(_lora(), None, **{"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}),
        "made for SDXL",
    ),
    Entry(
        "FLUX.2", "diffusers", _other_model("transformer.transformer_blocks.0.ff.linear_in", 6144), "made for FLUX.2"
    ),
    Entry(
        "SDXL",
        "sd-scripts",
        _other_model("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 2048),
        "made for SDXL",
    ),
    Entry(
        "Stable Diffusion 1.5",
        "sd-scripts",
        _other_model("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 768),
        "made for Stable Diffusion 1.5",
    ),
    Entry(
        "Stable Diffusion 3",
        "sd-scripts",
        _other_model("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536),
        "made for Stable Diffusion 3",
    ),
    Entry(
        "Qwen-Image",
        "diffusers",
        _other_model("transformer.transformer_blocks.0.img_mlp.net.2", 12288),
        "made for Qwen-Image",
    ),
    Entry("Wan", "diffusion-pipe", _other_model("diffusion_model.blocks.0.self_attn.q", 5120), "made for Wan"),
    Entry(
        "HunyuanVideo",
        "musubi-tuner",
        _other_model("diffusion_model.double_blocks.0.img_attn_qkv", WIDTH),
        "made for HunyuanVideo",
    ),
    Entry("Z-Image", "ai-toolkit", _other_model("diffusion_model.layers.0.attention.to_q", 3840), "made for Z-Image"),
)


def table() -> str:
    """The table of docs/lora-files.md."""
    rows = [("layout or method", "written by", "a key of it", "what happens")]
    for entry in (*READ, *REFUSED):
        verdict = "read" if entry.refusal is None else f"refused: {_readable(entry.refusal)}"
        if entry.warning:
            verdict = f"read, with a warning: {entry.warning}"
        rows.append((entry.name, entry.writer, f"`{entry.key}`", verdict))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|---|---|---|", *lines[1:]]) + "\n"


def _readable(pattern: str) -> str:
    return f"“{pattern.replace(' .*', ' … ')}”"


def write_page(page: Path = PAGE) -> None:
    """Put the table into its page."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    write_page()
