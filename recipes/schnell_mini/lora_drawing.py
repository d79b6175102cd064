"""Drawing with LoRA files on the engine's own network, whatever layers of it a file changes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schnell.engine.denoise import begin_drawing, denoise_step
from schnell.engine.flux import Flux
from schnell.engine.pictures import decode_latents
from schnell.models.catalogue import find_model
from schnell.models.folder import embedded_home, open_model_folder
from schnell.spec import DEFAULT_LORA_SCALE, Size
from schnell.training.examples import embed_prompts
from schnell.training.files import read_lora
from schnell.training.low_rank import BaseModel, LowRankLayers, install_low_rank, place_model, set_scale, write_factors

STEPS: Final = 4
SQUARE: Final = Size(16, 16)
PLAIN: Final = "none"
_FACTOR: Final = re.compile(r"transformer\.(.+)\.lora_A\.weight")


def install_file(base: BaseModel, file: Path) -> tuple[Flux, LowRankLayers]:
    """A transformer with the LoRA of a file at scale 1, and its layers. All of them have one rank."""
    factors = read_lora(file)
    ranks = {found[1]: len(factor) for name, factor in factors.items() if (found := _FACTOR.fullmatch(name))}
    transformer: Flux = base.load("transformer")
    only = "|".join(re.escape(path) for path in ranks)
    layers = install_low_rank(transformer, max(ranks.values()), seed=0, only=only)
    write_factors(layers, factors)
    return transformer, layers


class LoraArtist:
    """Draws with the LoRAs in a folder, the bundled ones if none is given."""

    def __init__(self, folder: Path | None = None, loras: Path | None = None) -> None:
        model = open_model_folder(folder) if folder else find_model("schnell-mini")
        self.base = place_model(model, torch.device("cpu"))
        self.loras = loras or embedded_home() / "loras"
        self.vae, self.plain = self.base.load("vae"), self.base.load("transformer")

    def draw(
        self,
        look: str,
        prompts: Sequence[str],
        scale: float = DEFAULT_LORA_SCALE,
        seed: int = 7,
        grid: Size = SQUARE,
    ) -> Tensor:
        """Pictures `[B, 3, H, W]` in 0..1, picture i with seed `seed + i`; `none` draws without a LoRA."""
        transformer = self.plain
        if look != PLAIN:
            transformer, layers = install_file(self.base, self.loras / f"{look}.safetensors")
            set_scale(layers, scale)
        pictures: list[Any] = []
        for number, prompt in enumerate(embed_prompts(prompts, self.base)):
            drawings = [begin_drawing(prompt, seed + number, STEPS, grid)]
            for _ in range(STEPS):
                drawings = denoise_step(transformer, drawings)
            pictures += decode_latents(self.vae, drawings)
        return torch.stack([to_tensor(picture) for picture in pictures])


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as `[3, H, W]` in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)
