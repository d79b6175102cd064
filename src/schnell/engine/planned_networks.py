"""Loading a model's networks in the form that its memory plan names: quantized, streamed, or as they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from schnell.engine.device import Precision
from schnell.engine.loading import DeviceOf, LayerForm, Networks, empty_network, load_network
from schnell.engine.memory_sums import Form, block_kind, streamed_blocks
from schnell.engine.offload import StreamedBlocks
from schnell.engine.quantized import (
    KindOf,
    PathChoice,
    quantize_linears,
    quantized_form,
    transformer_kinds,
    two_path_form,
)
from schnell.engine.quantized_files import QuantizedFiles
from schnell.models.folder import ModelFolder, weights_sha256

_CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class PlannedLoading:
    """A model folder, the form that it is loaded in, and where: `files` keeps what was quantized, if anything does."""

    folder: ModelFolder
    form: Form
    device: torch.device
    files: QuantizedFiles | None = None

    def load(self, precision: Precision, choice: PathChoice) -> Networks:
        """The networks for requests of this precision.

        Where the form has a second precision of the same dtype, they serve both, and `choice` says which.

        Raises:
            ModelFolderError: a weight file is missing or does not fit its configuration.
        """
        path = self.folder.path
        t5 = self._text_encoder(precision)
        streamed = stream_text(t5, self.device) if self.form.text_place == "streamed" else None
        return Networks(
            clip=load_network(path, "text_encoder", precision, self.device),
            t5=t5,
            transformer=self._transformer(precision, choice),
            vae=load_network(path, "vae", precision, self.device),
            streamed_text=streamed,
        )

    def _text_encoder(self, precision: Precision) -> nn.Module:
        kind = self.form.text
        place = self.device if self.form.text_place == "device" else _CPU
        if kind is None:
            network: nn.Module = load_network(self.folder.path, "text_encoder_2", precision, place)
            return network
        return self._quantized("text_encoder_2", precision, lambda _: kind, str(kind), lambda _: place)

    def _transformer(self, precision: Precision, choice: PathChoice) -> Any:
        form, exact = self.form, self.folder.exact_layers
        blocks = block_kind(form.precision) if Precision(form.precision).dtype == precision.dtype else None
        waiting = self._waiting_blocks()
        if blocks is None and form.modulation is None:
            network = load_network(self.folder.path, "transformer", precision, self._device_of(waiting))
        elif form.has_two_paths:
            both: LayerForm = two_path_form(transformer_kinds(blocks, None, exact), choice)
            network = load_network(self.folder.path, "transformer", precision, self._device_of(waiting), both)
        else:
            choice.quantized = True
            kinds = transformer_kinds(blocks, form.modulation, exact)
            description = f"{blocks} {form.modulation} {exact}"
            network = self._quantized("transformer", precision, kinds, description, self._device_of(waiting))
        if waiting:
            StreamedBlocks([network.get_submodule(path.rstrip(".")) for path in waiting], self.device)
        return network

    def _waiting_blocks(self) -> tuple[str, ...]:
        """The paths of the blocks that wait in host memory, in the order that they run in, with a dot at the end."""
        doubles = int(self.folder.transformer["num_layers"])
        count = doubles + int(self.folder.transformer["num_single_layers"])
        return tuple(
            f"double_blocks.{index}." if index < doubles else f"single_blocks.{index - doubles}."
            for index in streamed_blocks(self.form, count)
        )

    def _device_of(self, waiting: tuple[str, ...]) -> DeviceOf:
        return lambda name: _CPU if name.startswith(waiting) else self.device

    def _quantized(
        self, part: str, precision: Precision, kind_of: KindOf, description: str, device_of: DeviceOf
    ) -> nn.Module:
        """A network whose layers are stored as `kind_of` says: as it was kept, or quantized now and kept."""
        network: nn.Module
        if self.files is None:
            network = load_network(self.folder.path, part, precision, device_of, quantized_form(kind_of))
            return network
        key = self.files.key(weights_sha256(self.folder.path, part), f"{part} {description}", precision.dtype)
        kept = self.files.read(key)
        if kept is not None:
            network = empty_network(self.folder.path / part).to(precision.dtype)
            quantize_linears(network, kind_of)
            try:
                _assign(network, kept, device_of)
            except (OSError, SafetensorError, AttributeError, ValueError):
                # cut off or changed by somebody: made again from the weights
                self.files.remove(key)
            else:
                return network.eval().requires_grad_(requires_grad=False)
        network = load_network(self.folder.path, part, precision, device_of, quantized_form(kind_of))
        self.files.write(key, network)
        return network


def _assign(network: nn.Module, tensors: Iterable[tuple[str, Tensor]], device_of: DeviceOf) -> None:
    """Put stored tensors in the places of a network without memory.

    Raises:
        ValueError: one is missing or has another shape or dtype.
    """
    missing = dict(network.state_dict(keep_vars=True))
    for name, tensor in tensors:
        path, _, attribute = name.rpartition(".")
        layer, expected = network.get_submodule(path), missing.pop(name, None)
        if expected is None or (expected.shape, expected.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{name} is not what the network has there")
        placed = tensor.to(device_of(name))
        setattr(layer, attribute, nn.Parameter(placed, requires_grad=False) if _is_weight(expected) else placed)
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, {min(missing)} among them")


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def stream_text(t5: nn.Module, device: torch.device) -> StreamedBlocks:
    """Let T5 compute on a device while its weights wait in host memory, each block copied when its turn comes."""
    encoder: Any = t5.get_submodule("encoder")
    encoder["final_layer_norm"].to(device)
    return StreamedBlocks(list(encoder["block"]), device)
