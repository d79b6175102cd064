"""Model folders: where models lie on this machine, and what one holds, described without reading a weight.

A model is a stock diffusers folder (`model_index.json` and a folder a component), optionally with a `schnell.json`
beside it that says how its pictures are drawn. A component may name a file elsewhere instead of holding its weights
(`weights.json`): so single files become models without a copy.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from schnell.errors import ModelFolderError
from schnell.models.foreign_models import foreign_transformer
from schnell.models.weight_files import read_json as read_json  # noqa: PLC0414 - reached from here, too
from schnell.models.weight_files import weight_sources
from schnell.spec import Size

#: The folders that every FLUX model has.
COMPONENTS: Final = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
#: Those that hold weights.
NETWORKS: Final = ("transformer", "vae", "text_encoder", "text_encoder_2")
#: Side of the square of latent pixels that one token holds.
PACKING: Final = 2
#: T5 tokens that FLUX.1 [schnell] takes.
_FLUX_SEQUENCE_LENGTH: Final = 256


def cache_home() -> Path:
    """The folder for what can be made again: `$SCHNELL_CACHE_DIR`, `$XDG_CACHE_HOME/schnell` or `~/.cache/schnell`."""
    if named := os.environ.get("SCHNELL_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schnell"


def compiled_home() -> Path:
    """The folder that compiled kernels and graphs are kept in from start to start."""
    return cache_home() / "compiled"


def models_home() -> Path:
    """The folder that pulled models lie in: `$SCHNELL_MODELS_DIR`, or `models` in the cache."""
    return Path(os.environ.get("SCHNELL_MODELS_DIR") or cache_home() / "models")


def embedded_home() -> Path:
    """The folder of the models and LoRAs that come with the package."""
    return Path(__file__).parent / "embedded"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where a FLUX model lies and how it draws.

    `draw_scale` is the whole number by which the asked width and height exceed the drawn ones; `sequence_length` counts
    the T5 tokens of a prompt; `pixels_per_token` is the side of the square of drawn pixels behind one latent token;
    `transformer` is its `config.json`. `lora_layers` is a regular expression of the layers that LoRAs are trained on;
    without it, all of FLUX's; `lora_rank` is their rank where nobody names another. `noise_places`: the noise decides
    where the model draws things, so LoRA training pairs each picture with noises that mean it. `exact_layers` is a
    regular expression of the layers that are never quantized, by Black Forest Labs' names.
    """

    name: str
    path: Path
    draw_scale: int
    sequence_length: int
    pixels_per_token: int
    transformer: Mapping[str, Any]
    lora_layers: str | None = None
    lora_rank: int = 16
    exact_layers: str | None = None
    noise_places: bool = False

    def token_grid(self, size: Size) -> Size:
        """The latent tokens (columns, rows) that cover a picture of `size` pixels, rounded up to whole tokens."""
        pixels = self.draw_scale * self.pixels_per_token
        return Size(-(-size.width // pixels), -(-size.height // pixels))


def open_model_folder(path: Path, name: str | None = None) -> ModelFolder:
    """Describe the diffusers folder at `path`.

    `schnell.json` in the folder may set `draw_scale`, `sequence_length`, `lora_layers`, `lora_rank`, `exact_layers` and
    `noise_places`; without it they are 1, 256, all layers, 16, none and false.

    Raises:
        ModelFolderError: a component or a weight file is missing, the transformer is not FLUX.1 [schnell]'s, or
            `schnell.json` can't be understood.
    """
    missing = [component for component in COMPONENTS if not (path / component).is_dir()]
    if missing:
        raise ModelFolderError(f"{path} is not a FLUX model folder: it lacks {', '.join(missing)}")
    index = read_json(path / "model_index.json")
    if index.get("transformer", [None, None])[1] != "FluxTransformer2DModel":
        raise ModelFolderError(
            f"{path} holds no FLUX transformer, but {index.get('_class_name', 'an unknown pipeline')}"
        )
    transformer = read_json(path / "transformer" / "config.json")
    if foreign := foreign_transformer(index.get("_class_name"), transformer):
        raise ModelFolderError(f"{path} holds {foreign}")
    for component in NETWORKS:
        weight_sources(path / component)  # raises where a file is missing
    drawing = _read_drawing_options(path / "schnell.json")
    vae = read_json(path / "vae" / "config.json")
    return ModelFolder(
        name=name or path.name,
        path=path,
        draw_scale=drawing.draw_scale,
        sequence_length=drawing.sequence_length,
        # the autoencoder halves the picture between its levels, so once less than it has levels
        pixels_per_token=PACKING * 2 ** (len(vae["block_out_channels"]) - 1),
        transformer=transformer,
        lora_layers=drawing.lora_layers,
        lora_rank=drawing.lora_rank,
        exact_layers=drawing.exact_layers,
        noise_places=drawing.noise_places,
    )


@dataclass(frozen=True, slots=True)
class _DrawingOptions:
    """The fields of `schnell.json`."""

    draw_scale: int = 1
    sequence_length: int = _FLUX_SEQUENCE_LENGTH
    lora_layers: str | None = None
    lora_rank: int = 16
    exact_layers: str | None = None
    noise_places: bool = False


def _read_drawing_options(path: Path) -> _DrawingOptions:
    if not path.exists():
        return _DrawingOptions()
    options = read_json(path)
    # a misspelt field would otherwise be a default in silence, and pictures of another size
    if unknown := options.keys() - {field.name for field in fields(_DrawingOptions)}:
        raise ModelFolderError(f"{path} sets {', '.join(sorted(unknown))}, which no model folder has")
    for name in ("draw_scale", "sequence_length", "lora_rank"):
        # `type`, since Python counts true and false among the integers
        if type(options.get(name, 1)) is not int or options.get(name, 1) < 1:
            raise ModelFolderError(f"{path} must set {name} to a whole number from 1, not {options[name]!r}")
    if type(options.get("noise_places", False)) is not bool:
        raise ModelFolderError(f"{path} must set noise_places to true or false, not {options['noise_places']!r}")
    for name in ("lora_layers", "exact_layers"):
        try:
            re.compile(options.get(name) or "")
        except (re.error, TypeError) as error:
            raise ModelFolderError(f"{path} must set {name} to a regular expression: {error}") from error
    return _DrawingOptions(**options)


def weights_sha256(model: Path, part: str = "transformer") -> str:
    """The SHA-256, in hexadecimal, over the weights of a model folder's component, shard after shard by their names.

    Hashing 24 GB takes half a minute, so the answer is kept in the cache by path, size and modification time.
    """
    shards = [source.path for source in weight_sources(model / part)]
    key = json.dumps([[str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards])
    kept = cache_home() / "fingerprints" / hashlib.sha256(key.encode()).hexdigest()
    if kept.exists():
        return kept.read_text("ascii")
    value = _hash_files(shards)
    _keep(kept, value)
    return value


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)  # goes on with the same digest, reading in pieces
    return digest.hexdigest()


def _keep(path: Path, value: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # written aside and renamed: another process never reads half of it
        partial = path.with_suffix(f".{value[:8]}")
        partial.write_text(value, "ascii")
        partial.replace(path)
    except OSError:
        return  # a read-only home costs a repeated hash, nothing else
