"""A real https server on this machine, with a certificate authority of its own, that tells what it was asked."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme


@dataclass
class Asked:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]


@dataclass
class Reply:
    """An answer. `cut` closes the connection after this many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    length: bool = True


Route = Callable[[Asked], Reply]


@dataclass
class TlsServer:
    """`routes` by path (without query); `asked` is everything that came."""

    port: int
    authority: trustme.CA
    routes: dict[str, Route] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def url(self, path: str = "", host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def write_authority(self, path: Path) -> Path:
        self.authority.cert_pem.write_to_path(str(path))
        return path

    def serve(self, path: str, body: bytes, **headers: str) -> None:
        """Serve a file, ranges included."""

        def answer(asked: Asked) -> Reply:
            span = asked.headers.get("range", "")
            if not span:
                return Reply(200, body, {"ETag": '"v1"', **headers})
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            content_range = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}", "ETag": '"v1"'}
            return Reply(206, body[start:], content_range)

        self.routes[path] = answer

    def serve_json(self, path: str, text: str) -> None:
        self.routes[path] = lambda _: Reply(200, text.encode(), {"Content-Type": "application/json"})

    def redirect(self, path: str, to: str) -> None:
        self.routes[path] = lambda _: Reply(302, b"", {"Location": to})


def _missing(_: Asked) -> Reply:
    return Reply(404)


def _handler(server: TlsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
            server.asked.append(asked)
            route = server.routes.get(self.path.partition("?")[0], _missing)
            reply = route(asked)
            self.send_response(reply.status)
            if reply.length:
                self.send_header("Content-Length", str(len(reply.body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            return

    return Handler


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        return


@contextmanager
def run_tls_server() -> Iterator[TlsServer]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "hub.test", "127.0.0.1").configure_cert(context)
    server = TlsServer(0, authority)
    http = _QuietServer(("127.0.0.1", 0), _handler(server))
    http.socket = context.wrap_socket(http.socket, server_side=True)
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
