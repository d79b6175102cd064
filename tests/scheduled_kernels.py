"""What torch's compiler would launch for a module: its schedule, read before any code is made of it.

For a CPU, since nothing else is here. A GPU's schedule is the same but for joins, which cost a CPU a kernel more, so
its count is the upper one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._inductor.graph import GraphLowering

#: Nodes of a schedule that are no kernel: places in a buffer, one of several results, and memory that is asked for.
_NO_KERNEL = re.compile(r"Nop|MultiOutput\(|ConcatKernel\(|FallbackKernel\(\s*\S+'torch.ops.schnell.room_for")


@dataclass(frozen=True)
class Kernel:
    """A kernel's description and the bytes that it reads and writes."""

    what: str
    nbytes: int


class _ScheduledError(Exception):
    """The schedule is known: nothing else is wanted."""


def scheduled_kernels(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Kernel]:
    """The kernels of one call; nothing is computed, so neither weights nor inputs need have values."""
    found: list[Kernel] = []
    torch._dynamo.reset()
    with _schedule_into(found), torch.inference_mode():
        try:
            torch.compile(module, fullgraph=True)(*inputs)
        except Exception:
            if not found:
                raise
    torch._dynamo.reset()
    return found


@contextmanager
def _schedule_into(found: list[Kernel]) -> Iterator[None]:
    def stop_at_schedule(graph: Any) -> None:
        graph.init_wrapper_code()
        graph._update_scheduler()
        for node in graph.scheduler.nodes:
            what = str(node.node) if node.node is not None else str([each.node.name for each in node.get_nodes()])
            if not _NO_KERNEL.search(f"{type(node).__name__} {what}"[:120]):
                found.append(Kernel(what, _bytes_of(node)))
        raise _ScheduledError

    with patch.object(GraphLowering, "codegen", stop_at_schedule):
        yield


def _bytes_of(node: Any) -> int:
    own = {each.get_name() for each in node.get_nodes()}
    outputs = [made for each in node.get_nodes() for made in each.get_outputs()]
    # what a kernel makes for itself alone stays in registers
    inner = {made.get_name() for made in outputs if made.users and all(use.get_name() in own for use in made.users)}
    # what is written into memory that was there counts as written, not as read
    written_into = {name for made in outputs for name in made.get_mutations()}
    moved = node.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
    return sum(nbytes for name, nbytes in moved.items() if name not in inner | written_into)


def _allocate(*shape: Any, **options: Any) -> Tensor:
    return torch.empty(*shape, **options)


@contextmanager
def memory_without_values() -> Iterator[None]:
    """While the block runs, zeros are memory that nobody has touched: gigabytes of it cost nothing."""

    def empty_like_it(tensor: Tensor, *shape: Any, **options: Any) -> Tensor:
        return tensor.new_empty(*shape, **options)

    with (
        patch.object(torch, "zeros", _allocate),
        patch.object(Tensor, "new_zeros", empty_like_it),
        patch.object(Tensor, "copy_", lambda tensor, *_, **__: tensor),
    ):
        yield
