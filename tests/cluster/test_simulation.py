"""Many replicas, LoRAs and teams, simulated: nobody starves, teams share alike, jobs find their LoRAs."""

from cluster_simulation import STEP, STEPS, Simulation, jain
from counts import SOAK


def test_a_large_cluster_is_fair_starves_nobody_and_keeps_loras_where_they_are() -> None:
    if SOAK:
        found, requests = Simulation(replicas=100, loras=2000, teams=5000).run(1_000_000), 1_000_000
    else:
        found, requests = Simulation(replicas=10, loras=100, teams=20).run(4000), 4000
    assert found.drawn == requests
    assert sum(found.team_counts.values()) == requests
    assert found.longest_wait < 120
    service = [1 / (STEPS * STEP + sum(waits) / len(waits)) for waits in found.waits.values()]
    assert jain(service) >= 0.95
    assert found.hit_rate >= 0.9
    # a minute of the peak costs the gateways' choices so many seconds of a core
    assert found.gateway_seconds / found.seconds * 60 <= 60
