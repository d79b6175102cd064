"""`python -m schnell.adapters`: convert or inspect one file in this process, and end.

The task is a JSON object on stdin, the answer one on stdout (`schnell.adapters.apart` writes and reads them).
"""

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from schnell.adapters.convert import convert_adapter
from schnell.adapters.inspect import inspect_adapter
from schnell.adapters.shape import EncoderShape, ModelShape
from schnell.errors import AdapterError

#: Seconds of a processor that one file may take. The largest LoRAs that are read take some minutes.
_CPU_SECONDS: Final = 1800


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Carry out one task: `convert` or `inspect` the file `source`."""
    source = Path(task["source"])
    try:
        if task["task"] == "inspect":
            return {"report": asdict(inspect_adapter(source, max_bytes=task["max_bytes"]))}
        shape = _read_shape(task["shape"])
        found = convert_adapter(
            source, Path(task["folder"]), shape=shape, max_bytes=task["max_bytes"], peft_config=task["peft_config"]
        )
    except AdapterError as error:
        return {"refused": error.message}
    except OSError as error:
        return {"disk": error.strerror or type(error).__name__}
    return {"sha256": found.sha256}


def _read_shape(values: dict[str, Any]) -> ModelShape:
    encoders = {name: EncoderShape(**values[name]) for name in ("clip", "t5")}
    return ModelShape(**values | encoders)


def main() -> None:
    """Read the task, answer."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    json.dump(run(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
