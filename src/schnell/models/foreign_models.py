"""Models that are not FLUX.1 [schnell], recognised by the their tensors or pipelines, and what to say of them."""

from collections.abc import Iterable, Mapping
from typing import Final

_DEV: Final = (
    "FLUX.1 [dev], or made from it (Krea, Kontext): it is drawn with guidance in many steps, and its licence forbids "
    "what this service does; take FLUX.1 [schnell]"
)
_TOOLS: Final = (
    "one of FLUX.1's tools (Fill, Canny, Depth, Kontext), which take a picture as well; take FLUX.1 [schnell]"
)
#: A part of a tensor's name that only this model has, in the order in which they are looked for.
BY_TENSOR: Final = (
    ("distilled_guidance_layer.", "Chroma, a rebuilt FLUX without its modulation layers"),
    ("double_stream_modulation_img.", "FLUX.2, another network with another text encoder"),
    ("guidance_in.", _DEV),
    ("guidance_embedder.", _DEV),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("label_emb.", "Stable Diffusion XL"),
    ("add_embedding.linear_1.", "Stable Diffusion XL"),
    ("input_blocks.", "Stable Diffusion 1 or 2"),
    ("down_blocks.0.attentions.", "Stable Diffusion"),
    ("lora_", "a LoRA, not a model: add it with `schnell loras add`"),
    (".lora.", "a LoRA, not a model: add it with `schnell loras add`"),
    (".quant_state.", "quantized by bitsandbytes (NF4), a form that is not read; take the fp8 or a GGUF form of it"),
    (".wscales", "quantized for Nunchaku (SVDQuant), a form that is not read; take the fp8 or a GGUF form of it"),
    (".comfy_quant", "quantized in ComfyUI's mixed form, which is not read; take the scaled fp8 or a GGUF form of it"),
    ("transformer_blocks.", "a part of a diffusers folder: give the folder, the one with model_index.json"),
)
#: What a diffusers folder holds whose pipeline has this name.
BY_PIPELINE: Final[Mapping[str, str]] = {
    "Flux2Pipeline": "FLUX.2, another network with another text encoder",
    "FluxKontextPipeline": _TOOLS,
    "FluxFillPipeline": _TOOLS,
    "FluxControlPipeline": _TOOLS,
    "ChromaPipeline": "Chroma, a rebuilt FLUX without its modulation layers",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusionPipeline": "Stable Diffusion",
}
#: Of a latent token, in every FLUX.1 that takes a prompt alone.
FLUX_CHANNELS: Final = 64


def foreign_tensors(names: Iterable[str]) -> str | None:
    """What the model is that has tensors of these names, if it is known not to be FLUX.1 [schnell]."""
    present = tuple(names)
    for part, meaning in BY_TENSOR:
        if any(part in name for name in present):
            return meaning
    return None


def foreign_transformer(pipeline: object, transformer: Mapping[str, object]) -> str | None:
    """What a model is by its pipeline's name and its transformer's configuration, if not FLUX.1 [schnell]."""
    if meaning := BY_PIPELINE.get(str(pipeline)):
        return meaning
    if transformer.get("guidance_embeds"):
        return _DEV
    if transformer.get("in_channels") != FLUX_CHANNELS:
        return _TOOLS
    return None
