"""The files in deploy/: what a server of FLUX.1 [schnell] needs is in them, and their own tools find no fault."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def unit() -> configparser.RawConfigParser:
    class EveryValue(dict[str, Any]):
        """Keeps all values of a key that stands there several times."""

        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, [*self.get(key, []), *value] if isinstance(value, list) else value)

    parser = configparser.RawConfigParser(strict=False, dict_type=EveryValue, delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # keys of units have capitals
    parser.read(DEPLOY / "schnell.service")
    return parser


def test_the_unit_reads_and_writes_where_it_may(unit: configparser.RawConfigParser) -> None:
    service = unit["Service"]
    variables = dict(line.split("=", 1) for line in service["Environment"].splitlines())
    writable = {f"/var/lib/{service['StateDirectory']}", f"/var/cache/{service['CacheDirectory']}"}
    assert service["ProtectHome"] == "true"
    for name in ("SCHNELL_DATA_DIR", "SCHNELL_MODELS_DIR", "SCHNELL_CACHE_DIR"):
        folder = Path(variables[name])
        assert writable & {str(folder), *map(str, folder.parents)}, name


def test_systemd_knows_every_line_of_the_unit(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd is not installed here")
    lines = (DEPLOY / "schnell.service").read_text().splitlines()
    # neither the user nor the program is on this machine
    here = {"User": "User=root", "ExecStart": f"ExecStart={sys.executable}"}
    (tmp_path / "schnell.service").write_text("\n".join(here.get(line.partition("=")[0], line) for line in lines))
    checked = subprocess.run([tool, "verify", tmp_path / "schnell.service"], capture_output=True, text=True, check=True)
    assert checked.stderr == ""


def test_the_container_has_a_gpu_and_keeps_models_and_what_was_compiled() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service = compose["services"]["schnell"]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    mounted = dict(volume.split(":", 1) for volume in service["volumes"])
    assert set(mounted) <= compose["volumes"].keys()
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for variable in ("SCHNELL_DATA_DIR", "SCHNELL_MODELS_DIR", "SCHNELL_CACHE_DIR"):
        folder = dockerfile.partition(f"{variable}=")[2].split()[0]
        assert folder in mounted.values()
        assert f'"{folder}"' in next(line for line in dockerfile.splitlines() if line.startswith("VOLUME"))
    assert "--start-period" in dockerfile
    assert " gcc " in dockerfile
