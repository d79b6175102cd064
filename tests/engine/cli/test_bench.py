import json
from dataclasses import replace
from functools import partial

import pytest
from typer.testing import CliRunner

from schnell.benchmarks import catalogue
from schnell.benchmarks.catalogue import BENCHMARKS, Benchmark
from schnell.benchmarks.result import BenchmarkResult
from schnell.cli.application import build_app
from schnell.errors import InvalidFieldError


def test_an_unknown_benchmark_is_refused_with_the_known_names() -> None:
    result = CliRunner().invoke(build_app(), ["bench", "--only", "everything"])
    assert isinstance(result.exception, InvalidFieldError)
    assert all(name in str(result.exception) for name in BENCHMARKS)


def test_figures_are_json_by_name_and_progress_is_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "beside": BenchmarkResult(ours=1.0, unit="s", ours_is="a", peer=2.0, peer_is="b", ratio=0.5),
        "alone": BenchmarkResult(ours=3.0, unit="ms", ours_is="c"),
    }
    made = {name: Benchmark(f"what {name} is", partial(replace, result)) for name, result in figures.items()}
    monkeypatch.setattr(catalogue, "BENCHMARKS", made)
    result = CliRunner().invoke(build_app(), ["bench", "--json"])
    printed = json.loads(result.stdout)
    assert {name: (each["ours"], each["peer"], each["ratio"]) for name, each in printed.items()} == {
        "beside": (1.0, 2.0, 0.5),
        "alone": (3.0, None, None),
    }
    assert "beside: what beside is" in result.stderr
    alone = CliRunner().invoke(build_app(), ["bench", "--only", "alone", "--json"])
    assert list(json.loads(alone.stdout)) == ["alone"]
