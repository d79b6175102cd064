"""FLUX.1 [schnell] with random weights: its configuration files, its networks made on the device, an engine over them.

Real weights are not to be had where a GPU is lent, and 24 GB would take longer to carry than to use. Memory and time do
not depend on the numbers, as long as none of them grows out of bounds.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from schnell.engine import loading
from schnell.engine.device import Precision, free_host_memory, free_memory, quantized_arithmetic
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import LoadedModel
from schnell.engine.memory_plan import Target, make_plan
from schnell.engine.network_sizes import read_network_sizes
from schnell.engine.slot_linear import SlotPlan
from schnell.models.folder import ModelFolder, embedded_home, open_model_folder
from schnell.spec import Size

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """The four networks' configurations as their files have them, and what is drawn with them.

    `small`, `middle` and `large` are pictures of a quarter, one, and two megapixels; `text_tokens` counts T5's;
    `draw_scale` is by how much pictures are larger than they are drawn.
    """

    transformer: Config
    vae: Config
    clip: Config
    t5: Config
    text_tokens: int
    small: Size
    middle: Size
    large: Size
    draw_scale: int = 1

    @property
    def width(self) -> int:
        """Channels of a token inside the transformer."""
        return int(self.transformer["num_attention_heads"]) * int(self.transformer["attention_head_dim"])

    @property
    def sizes(self) -> tuple[Size, Size, Size]:
        """All three sizes of pictures."""
        return self.small, self.middle, self.large

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Output and input features of every attention and feed-forward layer of the blocks, by diffusers' path."""
        width, hidden = self.width, 4 * self.width
        square, wider, narrower = (width, width), (hidden, width), (width, hidden)
        attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        double = {f"attn.{name}": square for name in attention}
        double |= {f"{ff}.net.0.proj": wider for ff in ("ff", "ff_context")}
        double |= {f"{ff}.net.2": narrower for ff in ("ff", "ff_context")}
        single = {f"attn.{name}": square for name in attention[:3]}
        single |= {"proj_mlp": wider, "proj_out": (width, width + hidden)}
        found: dict[str, tuple[int, int]] = {}
        for blocks, count, layers in (
            ("transformer_blocks", self.transformer["num_layers"], double),
            ("single_transformer_blocks", self.transformer["num_single_layers"], single),
        ):
            for index in range(count):
                found |= {f"{blocks}.{index}.{name}": size for name, size in layers.items()}
        return found


_TRANSFORMER: Final[Config] = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "out_channels": None,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
_VAE: Final[Config] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
_CLIP: Final[Config] = {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
_T5: Final[Config] = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-06,
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
TRUE_SHAPE: Final = Shape(_TRANSFORMER, _VAE, _CLIP, _T5, 256, Size(512, 512), Size(1024, 1024), Size(1440, 1440))
#: The same in every way but size, for the CPU: the head width, on which kernels depend, is the true one.
TINY_SHAPE: Final = Shape(
    transformer={
        **_TRANSFORMER,
        "num_attention_heads": 1,
        "num_layers": 1,
        "num_single_layers": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
    },
    vae={**_VAE, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    clip={**_CLIP, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    | {"vocab_size": 6000},
    t5={**_T5, "d_model": 64, "d_ff": 64, "num_heads": 2, "d_kv": 32, "num_layers": 1, "vocab_size": 6000},
    text_tokens=32,
    small=Size(256, 256),
    middle=Size(320, 256),
    large=Size(384, 256),
    draw_scale=4,
)


def write_folder(shape: Shape, path: Path) -> ModelFolder:
    """A diffusers folder of this shape, complete but for the weights; its tokenizers are the embedded model's."""
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    parts = {"transformer": shape.transformer, "vae": shape.vae, "text_encoder": shape.clip, "text_encoder_2": shape.t5}
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "model_index.json", index)
    _write_json(path / "schnell.json", {"sequence_length": shape.text_tokens, "draw_scale": shape.draw_scale})
    for name, config in parts.items():
        (path / name).mkdir(exist_ok=True)
        _write_json(path / name / "config.json", dict(config))
        # a folder without any file of weights is refused; what is in it is never read
        save_file({}, path / name / "model.safetensors")
    mini = embedded_home() / "schnell-mini"
    for name, length in (("tokenizer", shape.clip["max_position_embeddings"]), ("tokenizer_2", shape.text_tokens)):
        shutil.copytree(mini / name, path / name, dirs_exist_ok=True)
        config = json.loads((path / name / "tokenizer_config.json").read_text("utf-8"))
        _write_json(path / name / "tokenizer_config.json", config | {"model_max_length": length})
    shutil.copytree(mini / "scheduler", path / "scheduler", dirs_exist_ok=True)
    return open_model_folder(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), "utf-8")


class RandomEngine(Engine):
    """An engine whose weights are made on the device instead of read from files; all else is as in a server.

    Its form is what a server would plan for the device's free memory, or for `memory` bytes.
    """

    def __init__(self, shape: Shape, path: Path, device: torch.device, memory: int | None = None) -> None:
        folder = write_folder(shape, path)
        host, eight_bits = free_host_memory(), quantized_arithmetic(device)
        target = Target(device.type, str(device), memory or free_memory(device), host, eight_bits)
        self.plan = make_plan(read_network_sizes(folder), target)
        super().__init__(folder, device, form=self.plan.form)

    def _slot_plan(self, precision: Precision) -> SlotPlan:
        # as on a GPU, also in a dry run: what is compiled needs slots that never change their shape
        return replace(super()._slot_plan(precision), reserved=True, widened=not self.plan.form.streamed)

    def _loaded_model(self, precision: Precision) -> LoadedModel:
        with random_weights(self.device):
            return super()._loaded_model(precision)


@contextmanager
def random_weights(device: torch.device) -> Iterator[None]:
    """While the block runs, networks that are loaded get random numbers in the place of their files' tensors.

    Everything behind that is the loader's own: where each layer goes, and what it is exchanged for, part by part.
    """
    fill_from_files = loading.fill_network

    def fill_at_random(network: nn.Module, _: object, dtype: torch.dtype, *places: Any) -> None:
        fill_from_files(network, random_tensors(network, dtype, device), dtype, *places)

    with patch.object(loading, "fill_network", fill_at_random):
        yield


def random_tensors(network: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """A network's parameters one by one, as `fill` would have them, without memory for more than one at a time."""
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in network.state_dict().items():
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        yield name, _fill_tensor(name, tensor, generator)


@torch.no_grad()
def fill(network: nn.Module, seed: int = 0) -> None:
    """Fill a network's parameters in place: the weights of norms are 1, biases 0, all others random.

    Their variance is one over a layer's inputs, so that numbers keep their size from layer to layer.
    """
    generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)
    for name, parameter in network.named_parameters():
        _fill_tensor(name, parameter, generator)


def _fill_tensor(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dim() > 1:
        return tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
    return tensor.fill_(0.0 if name.endswith("bias") else 1.0)
