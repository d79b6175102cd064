"""The peer: diffusers' FluxPipeline with random weights on the same device and in the same precision, and peft."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from schnell.benchmarks.gpu.lab import Lab
from schnell.benchmarks.gpu.random_loras import RandomLora
from schnell.benchmarks.gpu.random_model import fill
from schnell.spec import Size


def stock_pipeline(lab: Lab) -> Any:
    """A `FluxPipeline` of the lab's shape, its networks made on the device in bfloat16."""
    import diffusers
    import transformers

    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    shape = lab.shape
    clip, t5 = transformers.CLIPTextConfig(**shape.clip), transformers.T5Config(**shape.t5)
    networks = {
        "transformer": _on(lab, lambda: diffusers.FluxTransformer2DModel.from_config(dict(shape.transformer))),
        "vae": _on(lab, lambda: diffusers.AutoencoderKL.from_config(dict(shape.vae))),
        "text_encoder": _on(lab, lambda: transformers.CLIPTextModel(clip)),
        "text_encoder_2": _on(lab, lambda: transformers.T5EncoderModel(t5)),
    }
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        tokenizer=_tokenizer(lab, "tokenizer", shape.clip["max_position_embeddings"]),
        tokenizer_2=_tokenizer(lab, "tokenizer_2", shape.text_tokens),
        **networks,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _on(lab: Lab, make: Any) -> Any:
    """A network made on the device, its buffers filled by its own code, its parameters by ours."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(lab.device):
            network = make()
    finally:
        torch.set_default_dtype(before)
    network.to(torch.bfloat16)
    fill(network)
    return network.eval().requires_grad_(requires_grad=False)


def _tokenizer(lab: Lab, name: str, length: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    file = lab.folder / name / "tokenizer.json"
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), model_max_length=length, **special)


@torch.inference_mode()
def draw_stock(lab: Lab, pipeline: Any, size: Size, prompt: str, seed: int = 7) -> Image.Image:
    """One picture in four steps."""
    drawn: Image.Image = pipeline(
        prompt,
        width=size.width // lab.shape.draw_scale,
        height=size.height // lab.shape.draw_scale,
        num_inference_steps=4,
        guidance_scale=0.0,
        max_sequence_length=lab.shape.text_tokens,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    return drawn


def load_adapters(pipeline: Any, loras: Sequence[RandomLora]) -> list[str]:
    """Load LoRAs with peft, each as an adapter; gives the adapters' names."""
    names = []
    for lora in loras:
        name = lora.use.name.replace(".", "_")
        pipeline.load_lora_weights(lora.for_peft(), adapter_name=name)
        names.append(name)
    return names
