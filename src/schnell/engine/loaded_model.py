"""A model's networks as they are loaded: text encoders and transformer with LoRA slots in them, and the autoencoder."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from schnell.engine.adapter_slots import AdapterSlots
from schnell.engine.compiled_blocks import CompiledBlocks
from schnell.engine.compiler import Compiler, in_program_sizes
from schnell.engine.denoise import Drawing, denoise_step
from schnell.engine.flux_kernels import PackedLinear, gains_by_packing
from schnell.engine.loading import Networks
from schnell.engine.quantized import PathChoice
from schnell.engine.slot_linear import SlotLinear, SlotPlan, install_slots, slot_layers
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.subjects import read_subjects
from schnell.engine.text import PromptEmbedding, TextEncoder, computing_device
from schnell.engine.weight_names import layer_rows
from schnell.models.folder import ModelFolder
from schnell.spec import AdapterUse


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A prompt to encode, and the LoRAs to encode it with: `slots` holds the slot of each of `adapters`."""

    prompt: str
    adapters: tuple[AdapterUse, ...] = ()
    slots: tuple[SlotUse, ...] = ()


class LoadedModel:
    """A model's networks in one dtype, with LoRA slots in the linear layers of all but the autoencoder.

    `choice` says in which of two arithmetics the transformer's layers run, where they have two.
    """

    blocks: CompiledBlocks | None

    def __init__(
        self, networks: Networks, folder: ModelFolder, plan: SlotPlan, adapter_bytes: int, choice: PathChoice
    ) -> None:
        if plan.device.type in {"cpu", "cuda"}:
            # oneDNN and cuDNN, which torch hands convolutions to, take channels-last tensors as they are: a quarter off
            # the decoder's time on a CPU
            networks.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types leave it out
        self.networks, self.transformer, self.choice = networks, networks.transformer, choice
        self._device, self.blocks = plan.device, None
        self._model, self._subjects = folder.name, read_subjects(folder.path)
        self.routing = SlotRouting(plan.device, static=plan.reserved)
        parts = {
            f"transformer.{name}": part
            for name, part in install_slots(networks.transformer, self.routing, plan, layer_rows).items()
        }
        # T5 may compute on the CPU, and then a batch's slots are named there, too
        t5_device = computing_device(networks.t5)
        self._text_routings = [self.routing] if t5_device == plan.device else [self.routing, SlotRouting(t5_device)]
        # the text encoders run once a prompt and uncompiled: their slots take memory while a LoRA is in them
        on_demand = replace(plan, reserved=False)
        for component, network, device, routing in (
            ("text_encoder", networks.clip, plan.device, self.routing),
            ("text_encoder_2", networks.t5, t5_device, self._text_routings[-1]),
        ):
            installed = install_slots(network, routing, replace(on_demand, device=device))
            parts |= {f"{component}.{name}": part for name, part in installed.items()}
        if not plan.reserved:
            # a compiled network's products are the compiler's
            pack_layers(slot_layers(parts.values()))
        self.slots = AdapterSlots(parts, self.routing, plan, adapter_bytes)
        self._text = TextEncoder(folder.path, folder.sequence_length, networks.clip, networks.t5)

    def text_adapters(self, request: PromptRequest) -> tuple[tuple[str, float], ...]:
        """Hash and scale of those of the request's LoRAs that act on a text encoder: they decide its embedding too."""
        in_slots = zip(request.adapters, request.slots, strict=True)
        return tuple((used.sha256, used.scale) for used, at in in_slots if self.slots.acts_on_text(at.slot))

    def encode(self, requests: Sequence[PromptRequest]) -> list[PromptEmbedding]:
        """Both text encoders over a batch of prompts, each with its LoRAs."""
        with ExitStack() as routed:
            for routing in self._text_routings:
                routed.enter_context(routing.using([request.slots for request in requests]))
            self.slots.uploads.wait()
            embeddings = self._text.encode([request.prompt for request in requests])
        if self.networks.streamed_text is not None:
            self.networks.streamed_text.release()
        return [self._with_warning(embedding) for embedding in embeddings]

    def _with_warning(self, embedding: PromptEmbedding) -> PromptEmbedding:
        """Beside it, that the prompt is far from everything that the model knows, if its folder says what it knows.

        Here, since only the engine's thread may compute: another one would meet the slots of the batch that runs.
        """
        if self._subjects is None:
            return embedding
        embedder = self.networks.transformer.vector_in
        return replace(embedding, warning=self._subjects.warning(self._model, embedder, embedding.pooled))

    def step(self, drawings: Sequence[Drawing]) -> list[Drawing]:
        """Take drawings of one token grid a step further; in batches of sizes for which there is a program."""
        batches = [(list(drawings), len(drawings))] if self.blocks is None else in_program_sizes(drawings)
        return [drawing for batch, count in batches for drawing in self._step(batch)[:count]]

    def _step(self, drawings: list[Drawing]) -> list[Drawing]:
        self.slots.uploads.wait()
        with self.routing.using([drawing.slots for drawing in drawings]):
            return denoise_step(self.transformer, drawings)

    def compile_blocks(self, compiler: Compiler, text_tokens: int, dtype: torch.dtype) -> Iterator[float]:
        """Make the programs of the transformer's blocks; yields the share that is done, from 0 to 1.

        If that fails, or is not gone on with, the blocks run as they are.
        """
        blocks = self.blocks or CompiledBlocks(self.transformer, self.routing, compiler.backend)
        try:
            yield from blocks.warm_up(text_tokens, self._device, dtype)
            self.blocks = blocks
        finally:
            if self.blocks is None:
                blocks.stop()


def pack_layers(layers: Iterable[SlotLinear]) -> None:
    """Give those of these layers that gain by it packed weights: small ones in bfloat16 on a CPU."""
    for layer in layers:
        if gains_by_packing(layer.base):
            layer.base = PackedLinear(layer.base)
