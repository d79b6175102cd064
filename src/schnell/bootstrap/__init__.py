"""The only place that builds concrete objects out of settings.

Each function imports what it builds in its own body. Torch, FastAPI, SQLAlchemy and boto3 take a second or more
together, and a command should wait only for those that it uses: `schnell teams` for no torch, `schnell generate` for no
web framework.
"""

from schnell.bootstrap.backup import build_installation
from schnell.bootstrap.cluster import build_server_runner
from schnell.bootstrap.data import (
    build_database,
    build_locked_files,
    build_loras,
    build_source_tokens,
    build_store,
    check_data,
    check_store,
    has_data,
    hold_data,
    read_settings,
)
from schnell.bootstrap.memory import build_plan
from schnell.bootstrap.model import build_engine, build_runner, without_collecting
from schnell.bootstrap.proof import build_proof, build_shared_proof, build_signer, read_shared_keys
from schnell.bootstrap.server import build_app, build_services, check_settings

__all__ = [
    "build_app",
    "build_database",
    "build_engine",
    "build_installation",
    "build_locked_files",
    "build_loras",
    "build_plan",
    "build_proof",
    "build_runner",
    "build_server_runner",
    "build_services",
    "build_shared_proof",
    "build_signer",
    "build_source_tokens",
    "build_store",
    "check_data",
    "check_settings",
    "check_store",
    "has_data",
    "hold_data",
    "read_settings",
    "read_shared_keys",
    "without_collecting",
]
