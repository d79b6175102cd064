"""Debian's nginx with the file that deploy/ has, in front of a server of a test."""

import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import trustme

from s3_servers import free_port

FILE = Path(__file__).parents[1] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")


@contextmanager
def run_nginx(folder: Path, target: int) -> Iterator[httpx.Client]:
    """A client of the proxy in front of the server at port `target`, which trusts its certificate."""
    assert NGINX is not None
    folder.mkdir()
    authority, port, plain = trustme.CA(), free_port(), free_port()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    (folder / "site.conf").write_text(_with_our_names(folder, target, port, plain))
    (folder / "nginx.conf").write_text(_around(folder))
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors.log")]
    process = subprocess.Popen(command)
    try:
        url = f"https://localhost:{port}"
        with httpx.Client(base_url=url, verify=context, timeout=600) as client:
            _await(client, process, folder)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def _with_our_names(folder: Path, target: int, port: int, plain: int) -> str:
    """The file as it is, with this machine's ports, name and certificate."""
    text = FILE.read_text()
    for theirs, ours in (
        ("127.0.0.1:8000", f"127.0.0.1:{target}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("/etc/ssl/certs/pictures.example.pem", str(folder / "cert.pem")),
        ("/etc/ssl/private/pictures.example.key", str(folder / "key.pem")),
        ("server_name pictures.example;", "server_name localhost;"),
    ):
        assert theirs in text, theirs
        text = text.replace(theirs, ours)
    return text


def _around(folder: Path) -> str:
    """What Debian's own file says around it, as far as nobody but root may write there."""
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "\n".join(f"    {name}_temp_path {folder}/{name};" for name in names)
    user = "user root;\n" if Path("/proc/self").stat().st_uid == 0 else ""
    return f"""{user}daemon off;
pid {folder}/nginx.pid;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
{folders}
    include {folder}/site.conf;
}}
"""


def _await(client: httpx.Client, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError((folder / "errors.log").read_text())
        try:
            client.get("/healthz")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(str(folder))
