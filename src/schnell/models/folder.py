"""A model on disk: a stock diffusers folder, described without reading a weight."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from schnell.errors import ModelFolderError
from schnell.spec import Size

_EMBEDDED: Final = Path(__file__).parent / "embedded"


def cache_home() -> Path:
    """The folder for what can be made again: `$XDG_CACHE_HOME/schnell`, or `~/.cache/schnell`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schnell"


def models_home() -> Path:
    """The folder that pulled models lie in: `$SCHNELL_MODELS_DIR`, or `models` in the cache."""
    return Path(os.environ.get("SCHNELL_MODELS_DIR") or cache_home() / "models")


def embedded_home() -> Path:
    """The folder of weights that come with the package."""
    return _EMBEDDED


COMPONENTS: Final = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_PACKING: Final = 2
_FLUX_SEQUENCE_LENGTH: Final = 256


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where a FLUX model lies and how it draws.

    `draw_scale` is the whole number by which the asked width and height exceed the drawn ones; `sequence_length` counts
    the T5 tokens that run; `pixels_per_token` is the side of the square of drawn pixels behind one latent token.
    `lora_layers` is a regular expression of the layers that LoRAs are trained on; without it, all of FLUX's.
    """

    name: str
    path: Path
    draw_scale: int
    sequence_length: int
    pixels_per_token: int
    transformer: Mapping[str, Any]
    lora_layers: str | None = None

    def token_grid(self, size: Size) -> Size:
        """The latent tokens (columns, rows) that cover a picture of `size`, rounded up to whole tokens."""
        pixels = self.draw_scale * self.pixels_per_token
        return Size(-(-size.width // pixels), -(-size.height // pixels))


def open_model_folder(path: Path, name: str | None = None) -> ModelFolder:
    """Describe the diffusers folder at `path`.

    `schnell.json` in the folder may set `draw_scale`, `sequence_length` and `lora_layers`; without it they are 1, 256
    and all layers.

    Raises:
        ModelFolderError: a component is missing, the transformer is not FLUX's, or `schnell.json` can't be understood.
    """
    missing = [component for component in COMPONENTS if not (path / component).is_dir()]
    if missing:
        raise ModelFolderError(f"{path} is not a FLUX model folder: it lacks {', '.join(missing)}")
    index = _read_json(path / "model_index.json")
    if index.get("transformer", [None, None])[1] != "FluxTransformer2DModel":
        raise ModelFolderError(
            f"{path} holds no FLUX transformer, but {index.get('_class_name', 'an unknown pipeline')}"
        )
    convention = _read_convention(path / "schnell.json")
    vae = _read_json(path / "vae" / "config.json")
    return ModelFolder(
        name=name or path.name,
        path=path,
        draw_scale=convention.draw_scale,
        sequence_length=convention.sequence_length,
        pixels_per_token=_PACKING * 2 ** (len(vae["block_out_channels"]) - 1),
        transformer=_read_json(path / "transformer" / "config.json"),
        lora_layers=convention.lora_layers,
    )


@dataclass(frozen=True, slots=True)
class _Convention:
    draw_scale: int = 1
    sequence_length: int = _FLUX_SEQUENCE_LENGTH
    lora_layers: str | None = None


def _read_convention(path: Path) -> _Convention:
    if not path.exists():
        return _Convention()
    said = _read_json(path)
    if unknown := said.keys() - {field.name for field in fields(_Convention)}:
        raise ModelFolderError(f"{path} sets {', '.join(sorted(unknown))}, which no model folder has")
    for name in ("draw_scale", "sequence_length"):
        if type(said.get(name, 1)) is not int or said.get(name, 1) < 1:
            raise ModelFolderError(f"{path} must set {name} to a whole number from 1, not {said[name]!r}")
    try:
        re.compile(said.get("lora_layers") or "")
    except (re.error, TypeError) as error:
        raise ModelFolderError(f"{path} must set lora_layers to a regular expression: {error}") from error
    return _Convention(**said)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} is not a JSON object")
    return value


def weights_sha256(model: Path) -> str:
    """The SHA-256 over a model folder's transformer weights, shard after shard in the order of their names.

    Hashing 24 GB takes half a minute, so the answer is remembered by path, size and modification time.
    """
    shards = sorted((model / "transformer").glob("*.safetensors"))
    key = json.dumps([[str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards])
    memory = cache_home() / "fingerprints" / hashlib.sha256(key.encode()).hexdigest()
    if memory.exists():
        return memory.read_text("ascii")
    value = _hash_files(shards)
    _remember(memory, value)
    return value


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _remember(memory: Path, value: str) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_suffix(f".{value[:8]}")
        partial.write_text(value, "ascii")
        partial.replace(memory)
    except OSError:
        return  # a read-only home costs a repeated hash, nothing else
