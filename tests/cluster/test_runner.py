"""What a gateway's runner does with two replicas: same pictures, streams, cancelling, LoRA files, and faults."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import boto3
import pytest
import ray
from botocore.config import Config

from clusters import Replicas, TestCluster, await_that, kill, replicas
from counts import SOAK, repeats
from own_network import interfaces
from s3_servers import BUCKET, S3Server, run_nanio, run_seaweedfs
from schnell.assets.store import SHARED_FILES
from schnell.errors import AdapterError, GenerationFailedError
from schnell.serving.ray_cluster import ReplicaPlan

PLAN = ReplicaPlan(least=2, most=2, cpus=0.5, health_seconds=1.0, stuck_seconds=6.0)


@pytest.fixture(scope="module")
def two(cluster: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicas(tmp_path_factory.mktemp("two"), PLAN, step_seconds=0.1, rows=4) as found:
        yield found


def test_ray_listens_on_the_loopback_alone_here(two: Replicas) -> None:
    assert interfaces() == ["lo"]


async def test_progress_streams_and_every_step_is_told(two: Replicas) -> None:
    two.heard.clear()
    await two.draw("streamed")
    assert [each.step for each in two.heard if each.stage == "denoise"] == [1, 2, 3, 4]


async def test_the_same_seed_gives_the_same_picture_on_either_replica(two: Replicas) -> None:
    found = await asyncio.gather(*[two.draw(f"same {index}", seed=7) for index in range(8)])
    assert len(set(found)) == 1
    drawn_by = {line[0] for line in two.diary() if len(line) == 3 and line[2].startswith("same ")}
    assert len(drawn_by) == 2


async def test_a_lora_is_loaded_by_one_replica_and_stays_there(two: Replicas) -> None:
    lora = two.lora("loyal")
    for index in range(6):
        await two.draw(f"loyal {index}", loras=(lora,))
    assert sum(line[1] == "load" and line[2] == lora.sha256 for line in two.diary()) == 1


async def test_a_file_that_the_store_has_lost_is_put_there_again(two: Replicas) -> None:
    lora = two.lora("lost")
    await two.runner._share((lora,))
    for shared in (two.folder / "pictures").rglob("*.safetensors"):
        shared.unlink()
    assert await two.draw("lost", loras=(lora,))


async def test_other_bytes_in_the_store_are_refused(two: Replicas) -> None:
    lora = two.lora("forged")
    contents = await two.runner._share((lora,))
    [shared] = (two.folder / "pictures").rglob(f"{contents[lora.sha256]}.safetensors")
    shared.write_bytes(b"other")
    with pytest.raises(AdapterError, match="not this LoRA"):
        await two.draw("forged", loras=(lora,))


async def test_cancelling_stops_the_replica_within_one_step(two: Replicas) -> None:
    for turn in range(repeats(100)):
        prompt = f"slow, cancelled {turn}"
        task = asyncio.create_task(two.draw(prompt))
        await asyncio.to_thread(await_that, partial(two.has_begun, prompt))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        seen = two.steps_of(prompt)
        # another picture, drawn from its first to its last step meanwhile
        await two.draw(f"after {turn}")
        assert two.steps_of(prompt) <= seen + 1


async def test_every_job_of_a_replica_that_is_killed_is_drawn_elsewhere(two: Replicas) -> None:
    expected = [await two.draw(f"alone {seed}", seed=seed) for seed in range(4)]
    for turn in range(repeats(10)):
        two.heard.clear()
        jobs = [asyncio.create_task(two.draw(f"killed {turn} {n}", seed=n % 4)) for n in range(16)]
        await asyncio.to_thread(await_that, partial(two.has_begun, f"killed {turn} 0"))
        victim = next(int(line[0]) for line in two.diary() if line[1:] == ["step", f"killed {turn} 0"])
        kill(victim)
        found = await asyncio.gather(*jobs)
        assert found == [expected[n % 4] for n in range(16)]
        # the stream says that a job was begun again
        assert {each.attempt for each in two.heard} == {1, 2}
        await asyncio.to_thread(await_that, lambda: len(two.pids()) == 2, 120)


async def test_a_replica_that_is_paused_goes_on_with_what_it_has(two: Replicas) -> None:
    jobs = [asyncio.create_task(two.draw(f"paused {n}")) for n in range(repeats(100))]
    await asyncio.to_thread(await_that, lambda: two.steps_of("paused 0") >= 1)
    [victim, _] = sorted(two.pids())
    kill(victim, signal.SIGSTOP)
    await asyncio.sleep(repeats(20))
    kill(victim, signal.SIGCONT)
    assert len(await asyncio.gather(*jobs)) == repeats(100)
    assert two.pids() >= {victim}


async def test_a_replica_whose_device_hangs_is_replaced_and_its_jobs_are_drawn_elsewhere(two: Replicas) -> None:
    two.heard.clear()
    jobs = [asyncio.create_task(two.draw(f"beside {n}")) for n in range(8)]
    hanging = asyncio.create_task(two.draw("hangs", seed=3))
    await asyncio.to_thread(await_that, lambda: list(two.folder.glob("hangs.hung")))
    victim = next(int(line[0]) for line in two.diary() if line[1:] == ["step", "hangs"])
    assert len(await asyncio.gather(*jobs)) == 8
    assert await hanging == await two.draw("as seed 3 is drawn", seed=3)
    assert {each.attempt for each in two.heard} == {1, 2}
    await asyncio.to_thread(await_that, lambda: len(two.pids() - {victim}) == 2, 120)
    await asyncio.to_thread(await_that, lambda: victim not in two.pids(), 60)


@pytest.mark.skipif(not SOAK, reason="replicas of their own: make soak")
@pytest.mark.parametrize("run_server", [run_nanio, run_seaweedfs])
async def test_lora_files_reach_replicas_through_a_bucket_and_are_checked(
    cluster: TestCluster, tmp_path: Path, run_server: Callable[[Path], AbstractContextManager[S3Server]]
) -> None:
    (tmp_path / "s3").mkdir()
    with (
        run_server(tmp_path / "s3") as server,
        replicas(tmp_path / "replicas", PLAN, step_seconds=0.02, bucket_at=server.endpoint) as found,
    ):
        loras = [found.lora(f"bucket{n}") for n in range(4)]
        await asyncio.gather(*[found.draw(f"bucket {n}", loras=(loras[n % 4],)) for n in range(16)])
        assert {line[2] for line in found.diary() if line[1] == "load"} == {each.sha256 for each in loras}
        # the gateway puts each file there once, and the replicas have nothing but the bucket to read it from
        assert not (found.folder / "pictures").exists()
        client = boto3.client("s3", endpoint_url=server.endpoint, config=Config(s3={"addressing_style": "path"}))
        keys = [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
        assert len([key for key in keys if key.startswith(f"prefix/{SHARED_FILES}/")]) == 4
        forged = found.lora("forged in a bucket")
        contents = await found.runner._share((forged,))
        key = f"prefix/{SHARED_FILES}/{contents[forged.sha256]}.safetensors"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"other")
        with pytest.raises(AdapterError, match="not this LoRA"):
            await found.draw("forged", loras=(forged,))


async def test_drawing_goes_on_while_the_controller_is_dead(two: Replicas) -> None:
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    ray.kill(controller, no_restart=False)
    assert len(await asyncio.gather(*[two.draw(f"headless {n}") for n in range(repeats(100))])) == repeats(100)


async def test_a_job_that_is_wrong_fails_and_says_why_as_on_one_machine(two: Replicas) -> None:
    with pytest.raises(GenerationFailedError, match="nothing was charged"):
        await two.draw("step")
