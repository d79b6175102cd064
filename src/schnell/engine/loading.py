"""Reading the four networks of a FLUX model, part by part.

The transformer is ours with Black Forest Labs' names (`engine.flux`), the autoencoder ours with diffusers'
(`engine.autoencoder`), the text encoders ours with transformers' (`engine.text_networks`); files may have other names
and forms (`engine.checkpoint_files`). A network is first built without memory; then each layer gets its numbers as they
are read, goes to the device, and may there be exchanged for another form of itself (`LayerForm`) before the next is
read: a whole network is never in memory twice.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from schnell.engine.autoencoder import Autoencoder, AutoencoderShape, named_as_ours
from schnell.engine.checkpoint_files import component_tensors
from schnell.engine.device import Precision
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.offload import StreamedBlocks
from schnell.engine.text_networks import ClipText, T5Encoder
from schnell.engine.weight_names import read_diffusers_folder
from schnell.errors import ModelFolderError
from schnell.models.weight_files import REFERENCE

#: What a loaded linear layer is exchanged for, by its path; None leaves it as it is. It must have `in_features`,
#: `out_features`, `bias`, `forward(x)` and `full_weight()`, the matrix in the compute dtype.
LayerForm = Callable[[str, nn.Linear], nn.Module | None]
#: Where a parameter goes, by its name.
DeviceOf = Callable[[str], torch.device]

_NETWORKS: Final[dict[str, Callable[[Any], nn.Module]]] = {
    "transformer": lambda config: Flux(FluxParams.from_config(config)),
    "text_encoder": ClipText,
    "text_encoder_2": T5Encoder,
    "vae": lambda config: Autoencoder(AutoencoderShape.from_config(config)),
}


@dataclass(frozen=True, slots=True)
class Networks:
    """A FLUX model's networks in one precision, in inference mode.

    `streamed_text` are T5's blocks where they wait in host memory for their turn.
    """

    clip: nn.Module
    t5: nn.Module
    transformer: Flux
    vae: Autoencoder
    streamed_text: StreamedBlocks | None = None


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
    )


def load_network(
    folder: Path,
    part: str,
    precision: Precision,
    device: torch.device | DeviceOf,
    form: LayerForm | None = None,
) -> Any:
    """Read one network of a diffusers folder: `transformer`, `vae`, `text_encoder` (CLIP) or `text_encoder_2` (T5).

    Nothing is downloaded. Parameters need no gradient. `device` may be a function of a parameter's name.

    Raises:
        ModelFolderError: a weight file is missing or does not fit its configuration.
    """
    try:
        loaded = _load_network(folder / part, precision, device, form)
    # a field that a configuration lacks is a KeyError
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelFolderError(f"{folder} cannot be loaded: {error}") from error
    if isinstance(loaded, Autoencoder) and loaded.device.type in {"cpu", "cuda"}:
        # oneDNN and cuDNN take channels-last tensors as they are: a quarter off the decoder's time on a CPU
        loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types leave it out
    return loaded.eval().requires_grad_(requires_grad=False)


def empty_network(folder: Path) -> nn.Module:
    """The network that a component's folder (`transformer`, `vae`, `text_encoder` or `text_encoder_2`) describes.

    It has no memory: its parameters are on the meta device, and tensors are put in their place later.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    with torch.device("meta"), _Uninitialised():
        return _NETWORKS[folder.name](config)


class _Uninitialised(TorchFunctionMode):
    """Layers made in the block get no first random numbers: on the meta device torch would only pretend, in Python."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None  # layers have no use for it: these functions write to the tensor that they are given
        return func(*args, **(kwargs or {}))


def _load_network(
    folder: Path, precision: Precision, device: torch.device | DeviceOf, form: LayerForm | None
) -> nn.Module:
    network = empty_network(folder)
    fill_network(network, _named_as(network, folder), precision.dtype, device, form)
    return network


def _named_as(network: nn.Module, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a component's folder under the names that the network gives them."""
    if isinstance(network, Autoencoder):
        return named_as_ours(component_tensors(folder), len(network.shape.widths))
    if not isinstance(network, Flux):
        return _text_weights(folder, network.state_dict().keys())
    if (folder / REFERENCE).is_file():
        return component_tensors(folder)  # single files have Black Forest Labs' names, as our network has
    return read_diffusers_folder(folder, network.state_dict().keys())


def fill_network(
    network: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    device: torch.device | DeviceOf,
    form: LayerForm | None = None,
) -> None:
    """Give an empty network (on the meta device) its parameters, in any order, each as soon as it is read.

    `device` is where all of them go, or where each goes by its name.

    Raises:
        ModelFolderError: a parameter is missing, unknown, or of another shape.
    """
    missing = {name: len(parameter.shape) for name, parameter in network.named_parameters()}
    for name, tensor in tensors:
        if missing.pop(name, None) is None:
            raise ModelFolderError(f"there is no place for the tensor {name} in the network")
        path, _, kind = name.rpartition(".")
        layer = network.get_submodule(path)
        place = device if isinstance(device, torch.device) else device(name)
        _set_parameter(layer, kind, name, tensor.to(device=place, dtype=dtype))
        if form is not None and isinstance(layer, nn.Linear) and not any(each.is_meta for each in layer.parameters()):
            _exchange(network, path, form(path, layer))
    if missing:
        raise ModelFolderError(f"the weights lack {len(missing)} tensors, {min(missing)} among them")


def _set_parameter(layer: nn.Module, kind: str, name: str, tensor: Tensor) -> None:
    expected = tuple(getattr(layer, kind).shape)
    if tuple(tensor.shape) != expected:
        raise ModelFolderError(f"{name} is {tuple(tensor.shape)} in the file, and must be {expected}")
    setattr(layer, kind, nn.Parameter(tensor, requires_grad=False))


def _exchange(network: nn.Module, path: str, layer: nn.Module | None) -> None:
    if layer is not None:
        parent, _, name = path.rpartition(".")
        network.get_submodule(parent).register_module(name, layer)


def _text_weights(folder: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    # older files have `text_model.` before CLIP's names; what else they hold (position ids, a second copy of T5's
    # embedding) is no parameter of the network
    names = set(wanted)
    for name, tensor in component_tensors(folder):
        if (bare := name.removeprefix("text_model.")) in names:
            yield bare, tensor
