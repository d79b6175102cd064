"""Real S3 servers for tests."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
from botocore.config import Config

ACCESS_KEY = "schnell-tests"
SECRET_KEY = "schnell-tests-secret"
BUCKET = "pictures"


@dataclass(frozen=True)
class S3Server:
    endpoint: str

    def make_bucket(self) -> None:
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket=BUCKET)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_nanio(folder: Path) -> Iterator[S3Server]:
    """Small, and in Python: verifies signatures."""
    port = free_port()
    command = [sys.executable, "-m", "nanio", "serve", "--data-dir", str(folder), "--host", "127.0.0.1"]
    environment = os.environ | {"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY}
    with _running([*command, "--port", str(port)], environment, f"http://127.0.0.1:{port}") as server:
        yield server


@contextmanager
def run_seaweedfs(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS, a server that people run; its telemetry is off."""
    config = folder / "s3.json"
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {"name": "tests", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir()
    master, volume, filer, port = (_port_with_a_second() for _ in range(4))
    command = [
        str(Path(sys.executable).parent / "weed"),
        "server",
        "-master.telemetry=false",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={data}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        "-master.volumeSizeLimitMB=64",
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={config}",
    ]
    with _running(command, dict(os.environ), f"http://127.0.0.1:{port}") as server:
        yield server


def _port_with_a_second() -> int:
    """SeaweedFS also listens 10,000 ports further up, which must still be a port."""
    return next(port for _ in range(1000) if (port := free_port()) < 55_000)


@contextmanager
def _running(command: list[str], environment: dict[str, str], endpoint: str) -> Iterator[S3Server]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(endpoint, process)
        server = S3Server(endpoint)
        server.make_bucket()
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _await(endpoint: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert process.poll() is None, "the S3 server ended at once"
        try:
            if httpx.get(endpoint).status_code < 500:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(endpoint)
