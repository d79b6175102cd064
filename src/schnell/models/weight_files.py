"""Where the weights of one component of a model lie: beside its configuration, in shards, or in a file elsewhere."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schnell.errors import ModelFolderError

#: In a component's folder, names the file that its weights lie in: `{"file": absolute path, "prefix": before names}`.
REFERENCE: Final = "weights.json"


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A file with weights of a component: those whose names begin with `prefix`, which is not part of their names."""

    path: Path
    prefix: str = ""


def weight_sources(component: Path) -> list[WeightSource]:
    """The weight files of one component's folder: a file elsewhere, its index's shards, its one file, or all there are.

    Folders of the hub hold the same weights in several formats at times (`….fp16.safetensors`); only one set is taken.

    Raises:
        ModelFolderError: there is none, or one that is named is missing.
    """
    if (reference := component / REFERENCE).is_file():
        return [_referred(reference)]
    for stem in ("diffusion_pytorch_model", "model"):
        if (index := component / f"{stem}.safetensors.index.json").is_file():
            return [WeightSource(shard) for shard in _shards(index)]
        if (whole := component / f"{stem}.safetensors").is_file():
            return [WeightSource(whole)]
    found = sorted(component.glob("*.safetensors"))
    if not found:
        raise ModelFolderError(f"{component} holds no weights: no .safetensors file lies there")
    return [WeightSource(path) for path in found]


def _referred(reference: Path) -> WeightSource:
    named = read_json(reference)
    file, prefix = named.get("file"), named.get("prefix", "")
    if not isinstance(file, str) or not isinstance(prefix, str):
        raise ModelFolderError(f"{reference} must name a file and a prefix")
    if not Path(file).is_file():
        raise ModelFolderError(f"{file} is not there any more: add the model again with `schnell models add`")
    return WeightSource(Path(file), prefix)


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelFolderError(f"{index} has no weight_map of names to files")
    # a shard's name, never a path out of the folder
    shards = sorted({index.parent / Path(name).name for name in names.values()})
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ModelFolderError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names")
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder.

    Raises:
        ModelFolderError: the file is missing, cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} is not a JSON object")
    return value
