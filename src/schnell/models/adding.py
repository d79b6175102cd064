"""Making a model of files that people have: a folder in the stock layout that names them, and copies nothing."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schnell.errors import ModelChoiceError, ModelFolderError
from schnell.models.catalogue import CATALOGUE, catalogue_entry, is_added
from schnell.models.checkpoint_header import read_checkpoint_header
from schnell.models.checkpoint_parts import find_parts
from schnell.models.folder import COMPONENTS, ModelFolder, models_home, open_model_folder
from schnell.models.pull import partial_folder
from schnell.models.weight_files import REFERENCE, read_json, weight_sources

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: What a component is called, and the files that people have of it.
_KNOWN_AS: Final[Mapping[str, str]] = {
    "transformer": "the transformer (flux1-schnell.safetensors, or a GGUF form of it)",
    "text_encoder": "the CLIP text encoder (clip_l.safetensors)",
    "text_encoder_2": "the T5 text encoder (t5xxl_fp16.safetensors, or its fp8 or GGUF form)",
    "vae": "the autoencoder (ae.safetensors)",
    "tokenizer": "CLIP's tokenizer (a folder of the hub's model)",
    "tokenizer_2": "T5's tokenizer (a folder of the hub's model)",
}
_INDEX: Final[Mapping[str, Any]] = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_SCHEDULER: Final = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "use_dynamic_shifting": False}


@dataclass(frozen=True, slots=True)
class AddedModel:
    """A model that was added: its folder, and where each component came from."""

    folder: ModelFolder
    sources: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class _Component:
    """Where a component comes from: a file (with a prefix and a configuration), or a folder as it is."""

    path: Path
    prefix: str | None = None
    config: Mapping[str, Any] | None = None

    def read_config(self) -> Mapping[str, Any]:
        """Its `config.json`."""
        return self.config if self.config is not None else read_json(self.path / "config.json")


def add_model(
    paths: Sequence[Path], name: str | None = None, donor: Path | None = None, *, replace: bool = False
) -> AddedModel:
    """Make a model of a stock folder, or of files that hold its networks, under a name in the models folder.

    What the files lack is taken from the model folder `donor`, or from what was pulled of flux-schnell. The files must
    stay where they are. `name` is by default the first path's.

    Raises:
        ModelChoiceError: the name cannot be one, or a file is not there.
        ModelFolderError: a file is not understood, another model, damaged; something is missing; the name is taken.
    """
    paths = [path.absolute() for path in paths]
    target = _target(name or _name_of(paths[0]), replace=replace)
    if len(paths) == 1 and paths[0].is_dir():
        open_model_folder(paths[0])
        _put(target, lambda fresh: fresh.symlink_to(paths[0], target_is_directory=True))
        folder = open_model_folder(target)
        return AddedModel(folder, {part: paths[0] / part for part in COMPONENTS})
    components = _complete(_components_of(paths), donor)
    _check_fit(components)
    _put(target, lambda fresh: _write_folder(fresh, components))
    return AddedModel(open_model_folder(target), {part: each.path for part, each in components.items()})


def remove_model(name: str) -> Path:
    """Take a model that was added out of the models folder; the files that it named stay. Returns where it lay.

    Raises:
        ModelChoiceError: there is none of that name, or it was pulled.
    """
    if not is_added(name):
        raise ModelChoiceError(f"no model that was added is called {name!r}")
    _delete(models_home() / name)
    return models_home() / name


def _name_of(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name if path.is_dir() else path.stem).strip("-._") or "model"


def _target(name: str, *, replace: bool) -> Path:
    if not _NAME.fullmatch(name) or name.endswith(".partial"):
        raise ModelChoiceError(f"a model's name is 1-64 letters, digits, dots, dashes and underscores, not {name!r}")
    if any(entry.name == name for entry in CATALOGUE):
        raise ModelChoiceError(f"{name} is a name of the catalogue: choose another with --name")
    target = models_home() / name
    if (target.exists() or target.is_symlink()) and not replace:
        raise ModelFolderError(f"{target} is there already: choose another --name, or --replace it")
    return target


def _components_of(paths: Sequence[Path]) -> dict[str, _Component]:
    components: dict[str, _Component] = {}
    for path in paths:
        if path.is_dir():
            raise ModelFolderError(f"{path} is a folder: give files, or one model folder alone")
        for part in find_parts(read_checkpoint_header(path)):
            if part.component in components:
                first = components[part.component].path.name
                raise ModelFolderError(f"{first} and {path.name} both hold {_KNOWN_AS[part.component]}")
            components[part.component] = _Component(path, part.prefix, part.config)
    return components


def _complete(components: Mapping[str, _Component], donor: Path | None) -> dict[str, _Component]:
    pulled = catalogue_entry("flux-schnell").path
    donors = (donor,) if donor is not None else (pulled, partial_folder(pulled))
    found = dict(components)
    for part in _KNOWN_AS:
        if part not in found and (giver := next((each for each in donors if _offers(each / part)), None)):
            found[part] = _Component(giver.absolute() / part)
    if missing := [part for part in _KNOWN_AS if part not in found]:
        raise ModelFolderError(_what_is_missing(missing, donor))
    return found


def _offers(component: Path) -> bool:
    """Whether a component's folder is whole."""
    if component.name.startswith("tokenizer"):
        return any((component / file).is_file() for file in ("tokenizer.json", "vocab.json", "spiece.model"))
    try:
        return (component / "config.json").is_file() and bool(weight_sources(component))
    except ModelFolderError:
        return False


def _what_is_missing(missing: Sequence[str], donor: Path | None) -> str:
    names = "; ".join(_KNOWN_AS[part] for part in missing)
    where = f"{donor} has none" if donor is not None else "flux-schnell was not pulled"
    if "transformer" in missing:
        return f"what was given lacks {names}"
    return (
        f"what was given lacks {names}; {where}. Give these files too, name a model folder that has them with --from, "
        "or fetch them (10 GB, without the transformer): schnell models pull flux-schnell --without-transformer"
    )


def _check_fit(components: Mapping[str, _Component]) -> None:
    """Check that the networks belong together, by the sizes in which they meet."""
    configs = {
        part: components[part].read_config() for part in ("transformer", "text_encoder", "text_encoder_2", "vae")
    }
    transformer = configs["transformer"]
    for part, field, wanted in (
        ("text_encoder", "hidden_size", transformer["pooled_projection_dim"]),
        ("text_encoder_2", "d_model", transformer["joint_attention_dim"]),
        ("vae", "latent_channels", transformer["in_channels"] // 4),
    ):
        if (has := configs[part].get(field)) != wanted:
            raise ModelFolderError(
                f"{components[part].path} does not fit the transformer: its {field} is {has}, and must be {wanted}"
            )


def _write_folder(fresh: Path, components: Mapping[str, _Component]) -> None:
    fresh.mkdir(parents=True)
    for part, component in components.items():
        place = fresh / part
        if component.prefix is None:
            place.symlink_to(component.path, target_is_directory=True)
            continue
        place.mkdir()
        _write_json(place / "config.json", component.config)
        _write_json(place / REFERENCE, {"file": str(component.path), "prefix": component.prefix})
    (fresh / "scheduler").mkdir()
    _write_json(fresh / "scheduler" / "scheduler_config.json", _SCHEDULER)
    _write_json(fresh / "model_index.json", _INDEX)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _put(target: Path, write: Any) -> None:
    """Write beside `target`, then rename: nobody opens half a model."""
    fresh = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _delete(fresh)
        write(fresh)
        _delete(target)
        fresh.rename(target)
    except OSError as error:
        raise ModelFolderError(f"{target} cannot be written: {error.strerror or error}") from error


def _delete(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
