"""Progress of long work on stderr: a bar for each stage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

#: Told of a stage, how far it is (0..1), and a note behind it.
Show = Callable[[str, float, str], None]


@contextmanager
def showing() -> Iterator[Show]:
    """A function that shows how far (0..1) a stage is, with a note behind it."""
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def show(stage: str, done: float, note: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=1.0, note="")
            progress.update(bars[stage], completed=done, note=note)

        yield show
