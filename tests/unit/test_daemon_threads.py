"""Calls in daemon threads: answers and errors come back, a bound holds, and nothing that hangs holds up the end."""

import asyncio
import subprocess
import sys
import threading

import pytest

from schnell.daemon_threads import DaemonThreads


def fail() -> None:
    raise ValueError("no")


async def test_answers_and_errors_are_the_functions_own() -> None:
    threads = DaemonThreads(2, "test")
    assert await threads.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ValueError, match="no"):
        await threads.run(fail)
    threads.close()


async def test_no_more_calls_run_at_once_than_there_are_threads_and_all_of_them_run() -> None:
    threads, lock, now, most = DaemonThreads(3, "test"), threading.Lock(), 0, 0
    together = threading.Barrier(3)

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(30)
        with lock:
            now -= 1

    await asyncio.gather(*(threads.run(work) for _ in range(9)))
    assert most == 3
    threads.close()


async def test_a_thread_that_is_free_is_used_again() -> None:
    threads = DaemonThreads(20, "test")
    assert len({await threads.run(threading.get_ident) for _ in range(10)}) == 1
    threads.close()


async def test_a_cancelled_call_whose_turn_has_not_come_is_not_run() -> None:
    threads, go_on, ran = DaemonThreads(1, "test"), threading.Event(), threading.Event()
    first = asyncio.create_task(threads.run(go_on.wait, 30))
    second = asyncio.create_task(threads.run(ran.set))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    go_on.set()
    await first
    await threads.run(int)
    assert not ran.is_set()
    threads.close()


async def test_closed_threads_end() -> None:
    threads = DaemonThreads(1, "test-that-ends")
    await threads.run(int)
    threads.close()
    for thread in threading.enumerate():
        if thread.name.startswith("test-that-ends"):
            thread.join(30)
            assert not thread.is_alive()


async def test_a_call_after_the_end_is_refused_and_does_not_wait_for_ever() -> None:
    threads = DaemonThreads(1, "test")
    await threads.run(int)
    threads.close()
    with pytest.raises(RuntimeError, match="closed"):
        await threads.run(int)


def test_a_call_that_hangs_does_not_keep_a_process_that_ends() -> None:
    program = (
        "import asyncio, time\n"
        "from schnell.daemon_threads import DaemonThreads\n"
        "async def main():\n"
        "    hanging = asyncio.create_task(DaemonThreads(1, 'hangs').run(time.sleep, 600))\n"
        "    await asyncio.sleep(0.1)\n"
        "    hanging.cancel()\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
