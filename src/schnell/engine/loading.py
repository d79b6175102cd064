"""Loading the four networks of a FLUX model, and nothing else of diffusers."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from schnell.engine.device import Precision
from schnell.engine.text_networks import ClipText, T5Encoder
from schnell.errors import ModelFolderError

_SIBLING_PACKAGES: Final = ("diffusers.models.transformers", "diffusers.models.autoencoders")
_LOADERS: Final = "diffusers.loaders"
_TEXT_NETWORKS: Final[dict[str, Callable[[Any], nn.Module]]] = {"text_encoder": ClipText, "text_encoder_2": T5Encoder}


@dataclass(frozen=True, slots=True)
class Networks:
    """A FLUX model's networks in one precision, in inference mode, on one device."""

    clip: nn.Module
    t5: nn.Module
    transformer: nn.Module
    vae: nn.Module
    precision: Precision


def load_networks(folder: Path, precision: Precision, device: torch.device) -> Networks:
    """Read the networks of a diffusers folder.

    Raises:
        ModelFolderError: a weight file is missing or does not fit its configuration.
    """
    return Networks(
        clip=load_network(folder, "text_encoder", precision, device),
        t5=load_network(folder, "text_encoder_2", precision, device),
        transformer=load_network(folder, "transformer", precision, device),
        vae=load_network(folder, "vae", precision, device),
        precision=precision,
    )


def load_network(folder: Path, part: str, precision: Precision, device: torch.device) -> nn.Module:
    """Read one network of a diffusers folder: `transformer`, `vae`, `text_encoder` (CLIP) or `text_encoder_2` (T5).

    Raises:
        ModelFolderError: a weight file is missing or does not fit its configuration.
    """
    try:
        if part in _TEXT_NETWORKS:
            loaded = _load_text_network(folder / part, _TEXT_NETWORKS[part], precision)
        else:
            options: dict[str, Any] = {"dtype": precision.dtype, "local_files_only": True}
            loaded = network_class(part).from_pretrained(folder / part, **options, low_cpu_mem_usage=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelFolderError(f"{folder} cannot be loaded: {error}") from error
    return loaded.to(device).eval().requires_grad_(requires_grad=False)


def _load_text_network(folder: Path, network: Callable[[Any], nn.Module], precision: Precision) -> nn.Module:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    with torch.device("meta"):
        empty = network(config)
    wanted = set(empty.state_dict())
    # older files say `text_model.` before CLIP's names; what else they hold (position ids, a twin of T5's embedding)
    # is no parameter of the network
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if (bare := name.removeprefix("text_model.")) in wanted:
                found[bare] = tensor.to(precision.dtype)
    empty.load_state_dict(found, assign=True)
    return empty


def network_class(part: str) -> Any:
    """The class of one of diffusers' networks: `transformer` or `vae`."""
    return _network_classes()[part]


def _network_classes() -> dict[str, Any]:
    with _without_compiler():
        import diffusers.utils

        with (
            _absent("transformers"),
            _networks_alone(diffusers.utils.import_utils),
            _bare_packages(_SIBLING_PACKAGES),
        ):
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
            from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return {"transformer": FluxTransformer2DModel, "vae": AutoencoderKL}


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Let diffusers load without torch's compiler (a second and a half), as it does where that cannot be imported.

    Its step caches, which we do not use, are then not marked as out of the compiler's bounds.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    compiler: Any = torch.compiler
    disable = compiler.disable
    compiler.disable = _left_as_it_is
    try:
        with _absent("torch._dynamo"):
            yield
    finally:
        compiler.disable = disable


def _left_as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    return _left_as_it_is if function is None else function


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let a package that is not loaded yet look as if it were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # Python's own mark of what must not be imported
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _bare_packages(names: tuple[str, ...]) -> Iterator[None]:
    """Let modules of these packages be imported without running the packages' `__init__`.

    diffusers' own imports every network it has (a second and a half) for the two that FLUX needs. Afterwards the
    packages are as if never imported, so that anyone who wants them whole gets them whole.
    """
    added: list[str] = []
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = _bare_package(name)
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _bare_package(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModelFolderError(f"the installed diffusers has no {name}: install the version that schnell asks for")
    return importlib.util.module_from_spec(spec)


@contextmanager
def _networks_alone(import_utils: Any) -> Iterator[None]:
    """Let diffusers' networks load without peft and transformers (two seconds): LoRAs and text encoders are ours.

    What of diffusers loads LoRAs would remember that these were missing; it is forgotten afterwards, so that anyone who
    wants it gets it whole.
    """
    loaders_are_new = _LOADERS not in sys.modules
    known = (import_utils._peft_available, import_utils._transformers_available)
    import_utils._peft_available = import_utils._transformers_available = False
    try:
        yield
    finally:
        import_utils._peft_available, import_utils._transformers_available = known
        if loaders_are_new:
            for name in [name for name in sys.modules if name == _LOADERS or name.startswith(_LOADERS + ".")]:
                del sys.modules[name]
            vars(sys.modules["diffusers"]).pop("loaders", None)
