from schnell.serving.batch_size import BatchSizer


def settle(sizer: BatchSizer[str], seconds: dict[int, float], steps: int = 30) -> int:
    for _ in range(steps):
        rows = sizer.limit("lane")
        sizer.observe("lane", rows, seconds[rows])
    return sizer.limit("lane")


def test_batches_grow_while_rows_get_cheaper() -> None:
    sizer: BatchSizer[str] = BatchSizer(largest=16, longest_step=10)
    assert settle(sizer, {4: 1.0, 8: 1.2, 16: 1.4}) == 16


def test_batches_stop_growing_where_rows_get_no_cheaper() -> None:
    sizer: BatchSizer[str] = BatchSizer(largest=16)
    assert settle(sizer, {2: 0.3, 4: 0.5, 8: 1.0, 16: 2.0}) == 4


def test_the_first_step_of_a_size_does_not_decide() -> None:
    sizer: BatchSizer[str] = BatchSizer(largest=16, longest_step=10)
    slow_once = dict.fromkeys((4, 8, 16), 5.0)
    for _ in range(30):
        rows = sizer.limit("lane")
        sizer.observe("lane", rows, slow_once.pop(rows, 1.0 + rows / 100))
    assert sizer.limit("lane") == 16


def test_a_size_that_was_slow_once_is_tried_again() -> None:
    sizer: BatchSizer[str] = BatchSizer(largest=16, longest_step=10)
    assert settle(sizer, {4: 1.0, 8: 1.2, 16: 9.0}) == 8
    assert settle(sizer, {4: 1.0, 8: 1.2, 16: 1.4}, steps=300) == 16


def test_no_step_takes_longer_than_newcomers_should_wait() -> None:
    sizer: BatchSizer[str] = BatchSizer(largest=64, longest_step=1.0)
    limit = settle(sizer, {1: 0.3, 2: 0.55, 4: 1.05, 8: 2.0})
    assert limit == 2


def test_a_batch_that_ran_out_of_memory_is_not_tried_again() -> None:
    sizer: BatchSizer[str] = BatchSizer(largest=16)
    sizer.ran_out_of_memory("lane", 4)
    assert settle(sizer, {1: 0.5, 2: 0.6, 4: 0.7, 8: 0.8}) == 2


def test_lanes_learn_apart() -> None:
    sizer: BatchSizer[str] = BatchSizer()
    sizer.ran_out_of_memory("wide", 4)
    assert sizer.limit("square") == 4


def test_a_gpu_begins_with_one_row_and_keeps_it_where_two_draw_no_more_a_second() -> None:
    sizer: BatchSizer[str] = BatchSizer(first=1)
    assert sizer.limit("lane") == 1
    assert settle(sizer, {1: 0.076, 2: 0.152}) == 1


def test_a_gpu_grows_its_batches_where_rows_share_what_a_step_costs() -> None:
    sizer: BatchSizer[str] = BatchSizer(first=1, largest=8)
    assert settle(sizer, {1: 0.018, 2: 0.024, 4: 0.036, 8: 0.072}, steps=12) == 4
