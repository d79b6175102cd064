"""Blocks of a network whose weights wait in host memory and are copied to the device when their turn comes.

Two blocks are on the device at once: while one multiplies, the next is on its way. Both have a fixed piece of device
memory that they take turns with, and events say when a piece may be read and when it may be written over. So nothing
is left to the allocator's own bookkeeping of streams, which has handed memory out again that was still being copied
(diffusers' group offloading with `record_stream`, huggingface/diffusers#12673).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

#: Where a tensor may begin in the packed bytes of a block: kernels read 16 bytes at a time, tensor cores' loads 128.
_ALIGNMENT: Final = 128


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """Where one of a block's tensors lies in the block's bytes, and what holds it: the tensor `name` of `owner`."""

    owner: nn.Module
    name: str
    start: int
    shape: torch.Size
    dtype: torch.dtype
    nbytes: int

    def view_in(self, memory: Tensor) -> Tensor:
        """The tensor in these bytes, which are laid out as the block's are."""
        part = memory[self.start : self.start + self.nbytes]
        return part.view(self.dtype).view(self.shape)

    def put(self, memory: Tensor) -> None:
        """Let the module read its tensor from these bytes from now on."""
        held: Any = getattr(self.owner, self.name)
        held.data = self.view_in(memory)


class PackedBlock:
    """A block's weights in one piece of host memory, pinned if the device copies from it without the CPU.

    Weights are what the block's state dict holds: LoRA slots, which are written to at any time, stay on the device.
    """

    def __init__(self, block: nn.Module, *, pinned: bool) -> None:
        self.tensors = _lay_out(block)
        size = max((each.start + each.nbytes for each in self.tensors), default=0)
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        for each in self.tensors:
            each.view_in(self.host).copy_(getattr(each.owner, each.name))
        self.rest()

    def rest(self) -> None:
        """Let the block's tensors be those in host memory, where DoRA reads them."""
        for each in self.tensors:
            each.put(self.host)

    def use(self, memory: Tensor) -> None:
        """Let the block's tensors be those in this piece of device memory."""
        for each in self.tensors:
            each.put(memory)


def _lay_out(block: nn.Module) -> list[PackedTensor]:
    found: list[PackedTensor] = []
    start = 0
    for path, tensor in block.state_dict(keep_vars=True).items():
        owner, _, name = path.rpartition(".")
        found.append(PackedTensor(block.get_submodule(owner), name, start, tensor.shape, tensor.dtype, tensor.nbytes))
        start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return found


class StreamedBlocks:
    """Streams some blocks of a network, in the order that they run in, through two pieces of device memory.

    `blocks` must be called one after the other, each once a pass; hooks before and after each of them do the rest. A
    pass takes the device memory that it needs and keeps it for the next one, until `release`.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._blocks = [PackedBlock(block, pinned=device.type == "cuda") for block in blocks]
        self._pieces: list[Tensor] = []
        self._copies = _Copies(device)
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(self._before(index))
            block.register_forward_hook(self._after(index))

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that all blocks take."""
        return sum(block.host.nbytes for block in self._blocks)

    def release(self) -> None:
        """Give the device memory back; the next pass takes it again."""
        self._copies.wait_for_all()
        self._pieces = []

    def _before(self, index: int) -> Any:
        def begin(_module: nn.Module, _inputs: Any) -> None:
            if index == 0:
                self._begin_pass()
            self._copies.wait_until_here(index % 2)
            self._blocks[index].use(self._piece_of(index))
            if index + 1 < len(self._blocks):
                self._fetch(index + 1)

        return begin

    def _after(self, index: int) -> Any:
        def end(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self._copies.mark_read(index % 2)
            self._blocks[index].rest()

        return end

    def _begin_pass(self) -> None:
        if not self._pieces:
            size = max(block.host.nbytes for block in self._blocks)
            # made in inference mode they could be written to in inference mode alone
            with torch.inference_mode(mode=False):
                self._pieces = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(2)]
        # a pass that failed half way has marked nothing as read, and has left a block on the device
        for piece in range(2):
            self._copies.mark_read(piece)
        for block in self._blocks:
            block.rest()
        self._fetch(0)

    def _piece_of(self, index: int) -> Tensor:
        return self._pieces[index % 2]

    def _fetch(self, index: int) -> None:
        host = self._blocks[index].host
        self._copies.start(index % 2, host, self._piece_of(index)[: host.nbytes])


class _Copies:
    """Copies to the two pieces: on a stream of their own on a GPU, at once elsewhere."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        cuda: Any = torch.cuda  # streams and events have no types of their own
        self._stream = cuda.Stream(device) if on_gpu else None
        self._arrived = [cuda.Event() for _ in range(2)] if on_gpu else []
        self._read = [cuda.Event() for _ in range(2)] if on_gpu else []

    def start(self, piece: int, source: Tensor, target: Tensor) -> None:
        """Copy `source` into the piece once the block that was in it has been multiplied with."""
        if self._stream is None:
            target.copy_(source)
            return
        self._stream.wait_event(self._read[piece])
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            self._arrived[piece].record()

    def wait_until_here(self, piece: int) -> None:
        """Let what is computed from now on wait for the copy into the piece."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._arrived[piece])

    def mark_read(self, piece: int) -> None:
        """Note that what was computed until now read the piece."""
        if self._stream is not None:
            self._read[piece].record(torch.cuda.current_stream(self._stream.device))

    def wait_for_all(self) -> None:
        """Return when no copy is under way."""
        if self._stream is not None:
            self._stream.synchronize()
