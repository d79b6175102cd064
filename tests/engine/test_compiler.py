import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counts import SOAK
from schnell.engine import compiler
from schnell.engine.compiler import choose_compiler, find_missing, in_program_sizes, keep_programs
from schnell.engine.denoise import begin_drawing
from schnell.engine.slot_routing import SlotUse
from schnell.engine.text import PromptEmbedding
from schnell.errors import ConfigurationError
from schnell.spec import Size

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def unset_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        # set first, so that what the code under test sets is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compiler, "find_spec", lambda _: object())
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


def test_auto_compiles_on_a_gpu_that_has_all_it_takes_and_never_on_a_cpu(complete: None, tmp_path: Path) -> None:
    chosen = choose_compiler("auto", CUDA, tmp_path)
    assert chosen is not None
    assert chosen.backend == "inductor"
    assert choose_compiler("auto", CPU, tmp_path) is None


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_off_is_off(device: torch.device, complete: None, tmp_path: Path) -> None:
    assert choose_compiler("off", device, tmp_path) is None


def test_without_a_c_compiler_auto_runs_uncompiled_and_on_is_refused_in_words(
    complete: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    assert choose_compiler("auto", CUDA, tmp_path) is None
    with pytest.raises(ConfigurationError, match="SCHNELL_COMPILE is on, but there is no C compiler .*apt-get install"):
        choose_compiler("on", CUDA, tmp_path)


def test_what_is_missing_is_named(complete: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_missing(CUDA) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce GTX 1080")
    assert "GTX 1080 is older" in str(find_missing(CUDA))
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    assert "python3-dev" in str(find_missing(CUDA))
    monkeypatch.setattr(compiler, "find_spec", lambda _: None)
    assert "Triton" in str(find_missing(CUDA))
    assert "mps" in str(find_missing(torch.device("mps")))


def test_programs_are_kept_where_the_operator_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_programs(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton")


def test_a_folder_that_torchs_own_variable_names_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/var/cache/programs")
    keep_programs(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/var/cache/programs"


@pytest.mark.parametrize(
    ("rows", "batches"),
    [(1, [(1, 1)]), (2, [(2, 2)]), (3, [(4, 3)]), (4, [(4, 4)]), (5, [(4, 4), (1, 1)]), (7, [(4, 4), (4, 3)])],
)
def test_rows_step_in_batches_for_which_there_is_a_program(rows: int, batches: list[tuple[int, int]]) -> None:
    prompt = PromptEmbedding(torch.zeros(2, 4), torch.zeros(4), was_truncated=False)
    drawings = [replace(begin_drawing(prompt, seed, 4, Size(2, 2)), slots=(SlotUse(1, 1.0),)) for seed in range(rows)]
    found = list(in_program_sizes(drawings))
    assert [(len(batch), count) for batch, count in found] == batches
    assert [drawing for batch, count in found for drawing in batch[:count]] == drawings
    # what fills a batch up computes without LoRAs
    assert not any(drawing.slots for batch, count in found for drawing in batch[count:])


PROGRAM = """
import sys
from pathlib import Path
from schnell.engine.compiler import keep_programs
keep_programs(Path(sys.argv[1]))
import torch
from torch._dynamo.utils import counters
with torch.inference_mode():
    torch.compile(lambda x: (x * 2).sigmoid() + 1)(torch.ones(64))
print(counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.skipif(find_missing(CPU) is not None, reason="there is no C++ compiler on this machine")
@pytest.mark.skipif(not SOAK, reason="compiles in two processes: part of the full counts")
def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    hits = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]
