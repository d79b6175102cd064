"""Who has lost the key runs the line that the README gives, as it stands there."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from servers import run_server

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def way_out() -> str:
    found = re.search(r"Lost it\? `([^`]+)`", README)
    assert found is not None
    return found[1]


async def test_the_readmes_way_out_of_a_lost_key_makes_one_that_may_everything(tmp_path: Path) -> None:
    # what `make serve` leaves in the folder: the program in its environment
    program = tmp_path / ".venv" / "bin" / "schnell"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m schnell "$@"\n')
    program.chmod(0o755)
    data = tmp_path / "data"
    async with run_server(data, bootstrap_key=None) as server:
        environment = os.environ | {"SCHNELL_DATA_DIR": str(data)}
        run = ["bash", "-ec", way_out()]
        # while the server runs, which is when the key is missed
        done = await asyncio.to_thread(
            subprocess.run, run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        key = done.stdout.strip()
        who = await server.client.get("/api/session", headers={"API-KEY": key})
        assert who.json()["scopes"] == ["generate", "read", "admin", "operator"]
        assert who.json()["userName"] == "Administrator"
