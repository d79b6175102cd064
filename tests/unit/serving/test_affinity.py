"""Where jobs go on a cluster: to their LoRAs, unless those are busier than another replica by a bound."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from schnell.serving.affinity import EVICTION, PATIENCE, ReplicaLoad, rank
from schnell.serving.cluster_view import ClusterView
from schnell.serving.replica_messages import ReplicaReport
from schnell.spec import AdapterUse, GenerationSpec, Job

NAMES = st.sampled_from(["a", "b", "c", "d"])
LOADS = st.dictionaries(
    st.sampled_from(["r1", "r2", "r3", "r4"]),
    st.builds(ReplicaLoad, st.floats(0, 100), st.frozensets(NAMES, max_size=3), slots=st.integers(0, 4)),
    min_size=1,
)


def job(name: str, *loras: str) -> Job:
    return Job(name, "team", GenerationSpec("x"), 0, tuple(AdapterUse(each, each, Path(each), 1.0) for each in loras))


def test_a_job_goes_where_its_lora_is() -> None:
    loads = {"near": ReplicaLoad(3.0, {"cat"}), "idle": ReplicaLoad(0.0, {"dog"})}
    assert rank(loads, ["cat"], own_seconds=1.0) == ["near", "idle"]


def test_a_hot_lora_gets_a_second_replica() -> None:
    loads = {"near": ReplicaLoad(PATIENCE + 0.1, {"cat"}), "idle": ReplicaLoad(0.0, {"dog"})}
    assert rank(loads, ["cat"], own_seconds=1.0) == ["idle", "near"]


def test_a_job_without_loras_goes_to_the_replica_with_least_work() -> None:
    loads = {"busy": ReplicaLoad(2.0), "idle": ReplicaLoad(1.0, {"a", "b"})}
    assert rank(loads, [], own_seconds=1.0)[0] == "idle"


def test_cold_loras_are_spread_over_idle_replicas() -> None:
    loads = {"full": ReplicaLoad(0.0, {"a", "b"}), "empty": ReplicaLoad(0.0)}
    assert rank(loads, ["new"], own_seconds=1.0)[0] == "empty"


def test_a_lora_waits_a_little_longer_rather_than_push_another_one_out() -> None:
    near = ReplicaLoad(PATIENCE + 0.1, {"cat"}, slots=2)
    full, roomy = ReplicaLoad(0.0, {"dog", "cow"}, slots=2), ReplicaLoad(0.5, {"dog"}, {"dog"}, slots=2)
    assert rank({"near": near, "full": full}, ["cat"], own_seconds=1.0)[0] == "near"
    assert rank({"full": full, "roomy": roomy}, ["new"], own_seconds=1.0)[0] == "roomy"
    # not for ever: a hot LoRA gets a second replica all the same
    near.seconds = PATIENCE + EVICTION + 0.1
    assert rank({"near": near, "full": full}, ["cat"], own_seconds=1.0)[0] == "full"


@given(LOADS, st.lists(NAMES, max_size=3, unique=True), st.floats(0.01, 10))
def test_nobody_waits_longer_than_the_bound_for_affinity(
    loads: dict[str, ReplicaLoad], adapters: list[str], own: float
) -> None:
    ordered = rank(loads, adapters, own)
    assert sorted(ordered) == sorted(loads)
    least = min(load.seconds for load in loads.values())
    assert loads[ordered[0]].seconds <= least + (PATIENCE + EVICTION) * own * len(adapters) + 1e-6


@given(LOADS, st.lists(NAMES, max_size=3, unique=True))
def test_two_gateways_that_know_the_same_choose_the_same(loads: dict[str, ReplicaLoad], adapters: list[str]) -> None:
    turned_round = dict(reversed(loads.items()))
    assert rank(loads, adapters, 1.0) == rank(turned_round, adapters, 1.0)


def test_a_gateway_counts_what_it_has_sent_and_what_others_have_there() -> None:
    view = ClusterView()
    view.keep_only(["r1", "r2"])
    view.sent("r1", job("one", "cat"), 5.0)
    view.report("r1", ReplicaReport(queue_seconds=9.0))
    view.report("r2", ReplicaReport(queue_seconds=6.0))
    # r1: 5 s of ours and 4 s of others; r2: 6 s of others
    assert view.rank(["r1", "r2"], job("two"), 1.0) == ["r2", "r1"]
    assert view.least_seconds() == 6.0
    assert view.returned(job("one")) == "r1"
    assert view.rank(["r1", "r2"], job("two"), 1.0) == ["r1", "r2"]


def test_a_lora_on_its_way_counts_as_there() -> None:
    view = ClusterView()
    view.keep_only(["r1", "r2"])
    first = view.rank(["r1", "r2"], job("one", "cat"), 1.0)[0]
    view.sent(first, job("one", "cat"), 1.0)
    assert view.rank(["r1", "r2"], job("two", "cat"), 1.0)[0] == first


def test_a_replica_that_has_failed_a_job_is_tried_last() -> None:
    view = ClusterView()
    view.keep_only(["r1", "r2"])
    view.report("r2", ReplicaReport(queue_seconds=50.0))
    view.suspect("r1")
    assert view.rank(["r1", "r2"], job("one"), 1.0) == ["r2", "r1"]


def test_a_replica_that_is_gone_is_forgotten() -> None:
    view = ClusterView()
    view.keep_only(["r1"])
    view.report("r1", ReplicaReport(queue_seconds=1.0, resident=("cat",)))
    view.keep_only([])
    view.report("r1", ReplicaReport(queue_seconds=2.0))
    assert view.reports() == {}
    assert view.least_seconds() is None


def test_a_picture_costs_what_its_steps_and_size_cost_on_the_slowest_replica() -> None:
    view = ClusterView()
    view.keep_only(["r1", "r2"])
    view.report("r1", ReplicaReport(reference_seconds=2.0))
    view.report("r2", ReplicaReport(reference_seconds=4.0))
    assert view.seconds_of(GenerationSpec("x", steps=2, num_outputs=3)) == 6.0
