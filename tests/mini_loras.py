"""Small LoRAs that fit schnell-mini, as files and bytes."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save, save_file

WIDTH = 256
STEM = "transformer.transformer_blocks.0.attn.to_q"


def tensors(seed: int = 0, rank: int = 2, width: int = WIDTH) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        f"{STEM}.lora_A.weight": rng.standard_normal((rank, width), np.float32),
        f"{STEM}.lora_B.weight": rng.standard_normal((width, rank), np.float32),
    }


def many_layers_bytes(seed: int, rank: int) -> bytes:
    """A LoRA of 36 layers, which is converted: 74 KB for each of its ranks."""
    rng = np.random.default_rng(seed)
    stems = [f"transformer.single_transformer_blocks.{block}.attn.to_{part}" for block in range(12) for part in "qkv"]
    shapes = {"A": (rank, WIDTH), "B": (WIDTH, rank)}
    return bytes(
        save(
            {
                f"{stem}.lora_{part}.weight": rng.standard_normal(shapes[part], np.float32)
                for stem in stems
                for part in "AB"
            }
        )
    )


def lora_bytes(seed: int = 0, rank: int = 2, width: int = WIDTH, **metadata: str) -> bytes:
    return bytes(save(tensors(seed, rank, width), metadata or None))


def write_lora(path: Path, seed: int = 0, rank: int = 2, width: int = WIDTH) -> Path:
    save_file(tensors(seed, rank, width), path)
    return path


def trainer_tar(lora: bytes, trigger: str = "TOK") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (
            ("output/flux_train_replicate/lora.safetensors", lora),
            ("output/flux_train_replicate/config.yaml", f"trigger_word: {trigger}\n".encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
