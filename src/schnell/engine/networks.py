"""Loading the four networks of a FLUX model, and nothing else of diffusers."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from schnell.engine.precision import Precision
from schnell.errors import ModelFolderError

_SIBLING_PACKAGES: Final = ("diffusers.models.transformers", "diffusers.models.autoencoders")


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
    # diffusers and transformers both take `dtype`; the one or the other warns about anything else
    options: dict[str, Any] = {"dtype": precision.dtype, "local_files_only": True, "low_cpu_mem_usage": True}
    try:
        loaded: nn.Module = network_class(part).from_pretrained(folder / part, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelFolderError(f"{folder} cannot be loaded: {error}") from error
    return loaded.to(device).eval().requires_grad_(requires_grad=False)


def network_class(part: str) -> Any:
    """The class of one network: `transformer`, `vae`, `text_encoder` or `text_encoder_2`."""
    return _network_classes()[part]


def _network_classes() -> dict[str, Any]:
    import diffusers.utils

    with _without_peft(diffusers.utils.import_utils), _bare_packages(_SIBLING_PACKAGES):
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from transformers.models.clip.modeling_clip import CLIPTextModel
    from transformers.models.t5.modeling_t5 import T5EncoderModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # the commands show their own

    return {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
    }


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
def _without_peft(import_utils: Any) -> Iterator[None]:
    """Let diffusers' networks load without peft (another second): LoRAs run in our own slots."""
    known = import_utils._peft_available
    import_utils._peft_available = False
    try:
        yield
    finally:
        import_utils._peft_available = known
