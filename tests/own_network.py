"""A network namespace of the tests' own: Ray listens on all interfaces, and here there is none but the loopback."""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFFLAGS: Final = 0x8914
_UP_AND_LOOPBACK: Final = 0x1 | 0x8


@contextmanager
def own_network() -> Iterator[None]:
    """While the block runs, this thread, and threads and processes that it starts, see the loopback alone.

    Raises:
        PermissionError: this process may not have a network of its own: it is not root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(_CLONE_NEWNET) != 0:
        os.close(before)
        raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        _raise_loopback()
        yield
    finally:
        libc.setns(before, _CLONE_NEWNET)
        os.close(before)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _UP_AND_LOOPBACK))


def interfaces() -> list[str]:
    """The network interfaces that this thread sees."""
    return sorted(line.split(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:])
