"""Reading the four networks of a FLUX model from a diffusers folder.

The transformer is diffusers' class; the autoencoder (`engine.autoencoder`) and the two text encoders
(`engine.text_networks`) are ours, over weights with the names that diffusers and transformers give them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import nn

from schnell.engine.autoencoder import Autoencoder, AutoencoderShape, named_as_ours
from schnell.engine.checkpoint_files import component_tensors
from schnell.engine.device import Precision
from schnell.engine.network_classes import network_class
from schnell.engine.text_networks import ClipText, T5Encoder
from schnell.errors import ModelFolderError

_TEXT_NETWORKS: Final[dict[str, Callable[[Any], nn.Module]]] = {"text_encoder": ClipText, "text_encoder_2": T5Encoder}


@dataclass(frozen=True, slots=True)
class Networks:
    """A FLUX model's networks in one precision, in inference mode, on one device."""

    clip: nn.Module
    t5: nn.Module
    transformer: nn.Module
    vae: Autoencoder


def load_networks(folder: Path, precision: Precision, device: torch.device) -> Networks:
    """Read the networks of a diffusers folder.

    Raises:
        ModelFolderError: a weight file is missing or does not fit its configuration.
    """
    return Networks(
        clip=load_network(folder, "text_encoder", precision, device),
        t5=load_network(folder, "text_encoder_2", precision, device),
        transformer=load_network(folder, "transformer", precision, device),
        vae=load_autoencoder(folder / "vae", precision, device),
    )


def load_network(folder: Path, part: str, precision: Precision, device: torch.device) -> nn.Module:
    """Read one network of a diffusers folder: `transformer`, `vae`, `text_encoder` (CLIP) or `text_encoder_2` (T5).

    Nothing is downloaded. Parameters need no gradient.

    Raises:
        ModelFolderError: a weight file is missing or does not fit its configuration.
    """
    try:
        if part == "vae":
            return load_autoencoder(folder / part, precision, device)
        if part in _TEXT_NETWORKS:
            loaded = _load_text_network(folder / part, _TEXT_NETWORKS[part], precision)
        else:
            options: dict[str, Any] = {"dtype": precision.dtype, "local_files_only": True}
            loaded = network_class(part).from_pretrained(folder / part, **options, low_cpu_mem_usage=True)
    # diffusers reports what it misses as OSError or ValueError, torch a tensor of another shape as RuntimeError, and a
    # field that a configuration lacks is a KeyError
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelFolderError(f"{folder} cannot be loaded: {error}") from error
    return loaded.to(device).eval().requires_grad_(requires_grad=False)


def load_autoencoder(folder: Path, precision: Precision, device: torch.device) -> Autoencoder:
    """Read the autoencoder in a model's folder `vae`, with diffusers' names or Black Forest Labs'.

    Raises:
        ModelFolderError: its weights are missing or do not fit its configuration.
    """
    try:
        shape = AutoencoderShape.from_config(json.loads((folder / "config.json").read_text("utf-8")))
        with torch.device("meta"):
            vae = Autoencoder(shape)
        found = named_as_ours(component_tensors(folder), len(shape.widths))
        vae.load_state_dict({name: tensor.to(device, precision.dtype) for name, tensor in found}, assign=True)
    # a field that a configuration lacks is a KeyError; torch reports tensors that are missing or of another shape as
    # RuntimeError
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelFolderError(f"{folder} cannot be loaded: {error}") from error
    vae.eval().requires_grad_(requires_grad=False)
    if device.type in {"cpu", "cuda"}:
        # oneDNN and cuDNN take channels-last tensors as they are: a quarter off the decoder's time on a CPU
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types leave it out
    return vae


def _load_text_network(folder: Path, network: Callable[[Any], nn.Module], precision: Precision) -> nn.Module:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    # without memory of its own: `assign` below puts the file's tensors in the parameters' place
    with torch.device("meta"):
        empty = network(config)
    wanted = set(empty.state_dict())
    # older files have `text_model.` before CLIP's names; what else they hold (position ids, a second copy of T5's
    # embedding) is no parameter of the network
    found: dict[str, torch.Tensor] = {}
    for name, tensor in component_tensors(folder):
        if (bare := name.removeprefix("text_model.")) in wanted:
            found[bare] = tensor.to(precision.dtype)
    empty.load_state_dict(found, assign=True)
    return empty
