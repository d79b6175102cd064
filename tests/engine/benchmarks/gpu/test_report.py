import json
from pathlib import Path
from typing import Any

from schnell.benchmarks.gpu.report import BARS, Report

MET: dict[str, Any] = {"dry": False}


def measured(path: Path | None = None, about: dict[str, Any] | None = None) -> Report:
    report = Report(path, about or MET)
    report.begin("picture", 90)
    report.add("picture", ("go_fast", {"s": 0.31}))
    report.add("picture", ("bf16", {"s": 0.75}))
    report.add("picture", ("diffusers_s", {"error": "OutOfMemoryError: too much"}))
    return report


def outcomes(report: Report) -> dict[str, bool | None]:
    return {bar.figure: report.outcome(bar)["met"] for bar in BARS}


def test_a_bar_is_met_missed_or_not_measured() -> None:
    found = outcomes(measured())
    assert found["picture.go_fast.s"] is True
    assert found["picture.bf16.s"] is False
    assert found["serve.ratio"] is None


def test_a_dry_run_meets_no_bar() -> None:
    assert set(outcomes(measured(about={"dry": True})).values()) == {None}


def test_an_error_in_a_figures_place_meets_no_bar() -> None:
    report = Report(None, MET)
    report.begin("lora", 60)
    report.add("lora", ("resident_ms", {"error": "RuntimeError: no"}))
    assert outcomes(report)["lora.resident_ms"] is None


def test_the_file_is_whole_after_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    report = measured(path)
    written = json.loads(path.read_text("utf-8"))
    assert written["picture"]["figures"]["bf16"] == {"s": 0.75}
    assert written["picture"]["error"] == "not finished"
    report.end("picture", 12.34, None)
    assert json.loads(path.read_text("utf-8"))["picture"]["error"] is None
    assert [each.name for each in tmp_path.iterdir()] == ["gpu.json"]


def test_the_table_says_what_was_not_met_and_which_section_broke_off() -> None:
    report = measured()
    report.end("picture", 90.0, "cut off: its time was over")
    table = report.table()
    assert "0.75" in next(line for line in table.splitlines() if "NOT MET" in line)
    assert "picture: 90.0 s; cut off: its time was over" in table
