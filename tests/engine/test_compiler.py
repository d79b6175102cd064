import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapter_files import random_adapters
from conftest import make_job
from counts import SOAK
from schnell.engine import compiler
from schnell.engine.compiler import Compiler, choose_compiler, find_missing, in_program_sizes, keep_programs
from schnell.engine.denoise import Drawing, begin_drawing
from schnell.engine.device import FLOAT32
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.slot_routing import SlotUse
from schnell.engine.text import PromptEmbedding
from schnell.errors import ConfigurationError
from schnell.models.folder import open_model_folder
from schnell.spec import Job, Size

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def unset_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        # set first, so that what the code under test sets is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
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
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert choose_compiler("auto", CUDA, tmp_path) is None
    with pytest.raises(ConfigurationError, match=r"SCHNELL_COMPILE is on, but there is no C compiler .*apt-get"):
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


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two cases in one arithmetic: tracing takes seconds each, and all of them are counted elsewhere."""
    cases = [(1, (), "compact"), (2, (SlotUse(1, 1.0),), "compact")]
    monkeypatch.setattr("schnell.engine.compiled_blocks._warm_cases", lambda: iter(cases))
    monkeypatch.setattr(Engine, "precision_for", lambda *_, go_fast: FLOAT32)  # noqa: ARG005 - by name
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_an_engine_that_is_prepared_draws_the_same_without_compiling_again(
    few_programs: None, random_flux: Path, tmp_path: Path
) -> None:
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        made.append(graph)
        return graph

    folder = open_model_folder(random_flux)
    plain = Engine(folder, CPU, adapter_slots=2)
    compiled = Engine(folder, CPU, adapter_slots=2, compiler=Compiler(backend))
    assert (plain.is_compiled, list(plain.prepare())) == (False, [])
    assert list(compiled.prepare())[-1] == 1.0
    programs = len(made)
    uses = random_adapters(tmp_path, plain.network("transformer", FLOAT32), ranks=[4, 8])
    alone, together = (
        [make_job(seed=1, size=Size(256, 256))],
        [replace(make_job(seed=seed, size=Size(256, 288)), adapters=(use,)) for seed, use in enumerate(uses)],
    )
    for jobs in (alone, together):
        ours, theirs = (step_all(engine, jobs) for engine in (compiled, plain))
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one.latents, other.latents, rtol=1e-3, atol=1e-4)
    assert programs > 0
    assert len(made) == programs


def test_a_warm_up_that_fails_leaves_blocks_as_they_were(few_programs: None, random_flux: Path) -> None:
    def backend(_graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        raise RuntimeError("no space left on device")

    engine = Engine(open_model_folder(random_flux), CPU, compiler=Compiler(backend))
    with pytest.raises(Exception, match="no space left"):
        list(engine.prepare())
    assert step_all(engine, [make_job(size=Size(256, 256))])[0].step == 1


def step_all(engine: Engine, jobs: list[Job]) -> list[Drawing]:
    drawings: list[Drawing] = []
    for job in jobs:
        # one LoRA each at most, each in a slot of its own
        slots = engine.place_adapters(job.adapters, [1 + len(drawings)] * len(job.adapters), FLOAT32)
        [prompt] = engine.encode_prompts([PromptRequest(job.spec.prompt, job.adapters, slots)], FLOAT32)
        drawings += engine.begin(job, prompt, slots)
    return engine.step(drawings, FLOAT32)


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
