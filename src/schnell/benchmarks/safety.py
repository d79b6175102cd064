"""What the safety check costs."""

from schnell.benchmarks.result import (BenchmarkResult, median_pair)
from schnell.benchmarks.single import make_job
from schnell.bootstrap import build_engine
from schnell.engine.engine import generate
from schnell.models.catalogue import DEFAULT_MODEL


def safety_cost() -> BenchmarkResult:
    """A default request, 1 MP in 4 steps to the finished file, with the safety check and without."""
    checked, unchecked, job = build_engine(DEFAULT_MODEL), build_engine(DEFAULT_MODEL, safety=False), make_job()
    with_check, without = median_pair(
        lambda: generate(checked, job, lambda _: None), lambda: generate(unchecked, job, lambda _: None)
    )
    stages = generate(checked, job, lambda _: None).timings
    return BenchmarkResult(
        ours=with_check,
        unit="s",
        ours_is="1024x1024 in 4 steps with the safety check",
        peer=without,
        peer_is="the same without it",
        ratio=with_check / without,
        details={"check_s": stages["safety"], "share": stages["safety"] / sum(stages.values())},
    )
