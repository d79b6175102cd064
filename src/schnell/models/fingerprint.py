"""What exactly a model is: a hash over its transformer's weights, for receipts."""

import hashlib
import json
from pathlib import Path

from schnell.models.locations import cache_home


def weights_sha256(model: Path) -> str:
    """The SHA-256 over a model folder's transformer weights, shard after shard in the order of their names.

    Hashing 24 GB takes half a minute, so the answer is remembered by path, size and modification time.
    """
    shards = sorted((model / "transformer").glob("*.safetensors"))
    key = json.dumps([[str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards])
    memory = cache_home() / "fingerprints" / hashlib.sha256(key.encode()).hexdigest()
    if memory.exists():
        return memory.read_text("ascii")
    value = _hash_files(shards)
    _remember(memory, value)
    return value


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _remember(memory: Path, value: str) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_suffix(f".{value[:8]}")
        partial.write_text(value, "ascii")
        partial.replace(memory)
    except OSError:
        return  # a read-only home costs a repeated hash, nothing else
