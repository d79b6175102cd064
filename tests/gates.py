"""A TCP door in front of a server, that can be shut, and that sees what passes."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

#: What becomes of data on its way to the server. "cut": it never arrives. "lost": it arrives, and no answer comes back.
Fate = Literal["pass", "cut", "lost"]
_RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Link:
    """A client's connection and the one behind it. `seen` is for whoever watches."""

    client: socket.socket
    server: socket.socket
    seen: set[str] = field(default_factory=set)

    def drop(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Gate:
    """Listens on a free port of the loopback and passes everything on to what `connect` opens."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._links: set[Link] = set()
        self._is_open = True
        self.watch: Callable[[Link, bytes], Fate] = lambda _link, _data: "pass"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        """Cut every connection, and refuse new ones."""
        self._is_open = False
        for link in list(self._links):
            link.drop()

    def open(self) -> None:
        self._is_open = True

    def close(self) -> None:
        self.shut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._is_open:
                client.close()
                continue
            try:
                link = Link(client, self._connect())
            except OSError:
                client.close()
                continue
            self._links.add(link)
            threading.Thread(target=self._pass_up, args=(link,), daemon=True).start()
            threading.Thread(target=self._pass_down, args=(link,), daemon=True).start()

    def _pass_up(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.client.recv(65536):
                fate = self.watch(link, data)
                if fate == "pass":
                    link.server.sendall(data)
                    continue
                # a reset, not a farewell: the client must not take it for an orderly end
                link.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                link.client.close()
                if fate == "lost":
                    link.server.sendall(data)
                    time.sleep(0.05)  # the server is given the time to do what it was asked for
                break
        self._forget(link)

    def _pass_down(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.server.recv(65536):
                link.client.sendall(data)
        self._forget(link)

    def _forget(self, link: Link) -> None:
        link.drop()
        self._links.discard(link)


@contextmanager
def gate_to(connect: Callable[[], socket.socket]) -> Iterator[Gate]:
    gate = Gate(connect)
    try:
        yield gate
    finally:
        gate.close()


def to_unix_socket(path: str) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.connect(path)
        return link

    return connect


def to_port(port: int) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection(("127.0.0.1", port))
