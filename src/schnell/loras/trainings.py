"""LoRAs that are trained on this server: pictures that somebody uploads, a process that trains, a file for the library.

The process is `schnell train lora`, the same as on a command line. It is apart from the server because it takes
minutes, gigabytes and every core that is idle; it has a low priority, so that who waits for a picture is served first.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Literal

from schnell.database.tables import new_id
from schnell.errors import (
    ConflictError,
    DiskError,
    FieldProblem,
    InvalidFieldError,
    NotFoundError,
    SchnellError,
    TrainingError,
)
from schnell.loras.library import LoraLibrary
from schnell.loras.references import suggest_name
from schnell.loras.repository import Labels, LibraryLora

_log = logging.getLogger(__name__)
Stage = Literal["preparing", "training", "adding", "done", "failed", "cancelled"]
ENDED: Final = frozenset({"done", "failed", "cancelled"})
MOST_PICTURES: Final = 200
#: Bytes of all pictures of a training together.
TRAINING_BYTES: Final = 200 * 2**20
_ENDINGS: Final = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_NICENESS: Final = 10
_LONGEST_LINE: Final = 2000
#: Bytes of a picture that are in memory at a time while it is copied.
_PIECE: Final = 2**20


@dataclass(slots=True)
class Training:
    """One training, as it goes on. `done` is the part of its stage, 0 to 1; `lora` the name in the library at last."""

    id: str
    team_id: str
    user_name: str
    name: str
    trigger: str
    minutes: float
    folder: Path
    stage: Stage = "preparing"
    done: float = 0.0
    message: str = ""
    lora: str = ""
    process: "asyncio.subprocess.Process | None" = field(default=None, repr=False)

    @property
    def samples(self) -> list[str]:
        """The names of the sheets of sample pictures so far, the oldest first."""
        return sorted(path.name for path in (self.folder / "samples").glob("step-*.webp"))


@dataclass(frozen=True, slots=True)
class TrainingPicture:
    """A picture that is trained on: its file's name, the open file, which is read in pieces, and what it shows."""

    file_name: str
    file: BinaryIO
    caption: str = ""


@dataclass(frozen=True, slots=True)
class TrainingWish:
    """What somebody asks for: the word that stands for what is learned, a name for the library, and minutes."""

    trigger: str
    name: str | None = None
    minutes: float = 5.0


class LoraTrainings:
    """Trains one LoRA at a time, for `model`, in this server's own `folder`. `most_minutes` of 0 trains none."""

    def __init__(
        self,
        library: LoraLibrary,
        folder: Path,
        *,
        model: str,
        most_minutes: float,
        on_added: Callable[[LibraryLora], None] = lambda _: None,
    ) -> None:
        self.most_minutes = most_minutes
        self._library = library
        self._folder = folder
        self._model = model
        self._on_added = on_added
        self._trainings: dict[str, Training] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_starting = False

    @property
    def is_busy(self) -> bool:
        """Whether a training is under way, or about to be."""
        return self._is_starting or (self._task is not None and not self._task.done())

    def check_offered(self) -> None:
        """Raises NotFoundError where this server trains none."""
        if not self.most_minutes:
            raise NotFoundError("this server trains no LoRAs in the browser; schnell train lora does on a command line")

    def check_free(self) -> None:
        """Look whether a training could begin now, before its pictures are received.

        Raises:
            NotFoundError: this server trains none.
            ConflictError: another is under way.
        """
        self.check_offered()
        if self.is_busy:
            raise ConflictError("this server is training a LoRA; try again when that is done")

    async def start(
        self, team_id: str, user_name: str, wanted: TrainingWish, pictures: Sequence[TrainingPicture]
    ) -> Training:
        """Begin a training for a team's library. The pictures' files may be closed afterwards.

        Raises:
            NotFoundError: this server trains none.
            InvalidFieldError: something about it cannot be used.
            ConflictError: another is under way.
            DiskError: the pictures cannot be kept.
        """
        self.check_free()
        self._check(wanted, pictures)
        # nobody else begins one while this one waits for the database and the disk
        self._is_starting = True
        try:
            training = await self._prepare(team_id, user_name, wanted, pictures)
            # one is kept for each team: its samples are looked at after its end, too. None of them is under way, as
            # the one of `_task` would be the only one
            for old in [each for each in self._trainings.values() if each.team_id == team_id]:
                del self._trainings[old.id]
                await asyncio.to_thread(shutil.rmtree, old.folder, ignore_errors=True)
            self._trainings[training.id] = training
            self._task = asyncio.create_task(self._run(training))
        finally:
            self._is_starting = False
        return training

    def latest(self, team_id: str) -> Training | None:
        """The team's last training, ended or not."""
        return next((each for each in self._trainings.values() if each.team_id == team_id), None)

    def find(self, team_id: str, training_id: str) -> Training:
        """One of the team's trainings. Raises NotFoundError."""
        training = self._trainings.get(training_id)
        if training is None or training.team_id != team_id:
            raise NotFoundError("no training has this id")
        return training

    def sample(self, team_id: str, training_id: str, name: str) -> Path:
        """A sheet of sample pictures. Raises NotFoundError."""
        training = self.find(team_id, training_id)
        if name not in training.samples:
            raise NotFoundError("this training has no such picture")
        return training.folder / "samples" / name

    async def cancel(self, team_id: str, training_id: str) -> Training:
        """Stop a training; what it has learned is lost. One that has ended stays as it is. Raises NotFoundError."""
        training = self.find(team_id, training_id)
        if training.stage not in ENDED and training.stage != "adding":
            training.stage = "cancelled"
            _kill(training)
        return training

    def sweep(self, living: Collection[str]) -> None:
        """Remove what servers that were killed have left: folders beside this one's, named by their servers' ids."""
        for folder in self._folder.parent.glob("*"):
            if folder.name not in living:
                shutil.rmtree(folder, ignore_errors=True)

    async def close(self) -> None:
        """Stop what is under way, and remove every folder."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _check(self, wanted: TrainingWish, pictures: Sequence[TrainingPicture]) -> None:
        problems = []
        trigger, minutes = wanted.trigger, wanted.minutes
        if not 1 <= len(trigger.strip()) <= 100 or not trigger.isprintable():
            problems.append(FieldProblem("trigger", "must be a word of 1-100 printable characters, such as mystyle"))
        if not 0 < minutes <= self.most_minutes:
            problems.append(FieldProblem("minutes", f"must be above 0, and at most {self.most_minutes:g} here"))
        if not 1 <= len(pictures) <= MOST_PICTURES:
            problems.append(FieldProblem("pictures", f"must be 1-{MOST_PICTURES} pictures, got {len(pictures)}"))
        wrong = [each.file_name for each in pictures if Path(each.file_name).suffix.lower() not in _ENDINGS]
        if wrong:
            problems.append(FieldProblem("pictures", f"must be .png, .jpg, .webp or .bmp: {wrong[0][:100]!r} is not"))
        if problems:
            raise InvalidFieldError(*problems)

    async def _prepare(
        self, team_id: str, user_name: str, wanted: TrainingWish, pictures: Sequence[TrainingPicture]
    ) -> Training:
        # before the training, not after it: a name may be taken, and a library full
        name = await self._library.check_room(team_id, wanted.name or suggest_name(wanted.trigger))
        training_id = new_id()
        folder = self._folder / training_id
        try:
            await asyncio.to_thread(_write_pictures, folder / "pictures", pictures)
        except OSError as error:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise DiskError(f"the pictures cannot be kept: {error.strerror or type(error).__name__}") from error
        return Training(training_id, team_id, user_name, name, wanted.trigger, wanted.minutes, folder)

    async def _run(self, training: Training) -> None:
        try:
            if training.stage != "cancelled":
                await self._train(training)
            if training.stage != "cancelled":
                await self._add(training)
        except asyncio.CancelledError:
            training.stage = "cancelled"
            raise
        except SchnellError as error:
            training.stage, training.message = "failed", error.message
        except Exception:  # noqa: BLE001 - whatever happens, the page must not wait for ever
            _log.exception("the training of %s failed", training.name)
            training.stage, training.message = "failed", "the training failed; the server's log says why"
        finally:
            _kill(training)
            # pictures are kept no longer than they are needed
            await asyncio.to_thread(shutil.rmtree, training.folder / "pictures", ignore_errors=True)

    async def _train(self, training: Training) -> None:
        out = training.folder / "lora.safetensors"
        command = [sys.executable, "-m", "schnell", "train", "lora", str(training.folder / "pictures")]
        options = {"trigger": training.trigger, "out": out, "minutes": training.minutes, "model": self._model}
        options["samples"] = training.folder / "samples"
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        training.process = await asyncio.create_subprocess_exec(
            *command,
            "--progress",
            "json",
            "--watch-stdin",
            # its end is this server's end, also where nothing else can tell of it
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # a group of its own: it is stopped with all that it has started
            start_new_session=True,
        )
        # at once, before it has threads: those inherit it
        os.setpriority(os.PRIO_PROCESS, training.process.pid, _NICENESS)
        if training.stage == "cancelled":  # while the process was started, and there was none to stop
            _kill(training)
        last = await _follow(training, training.process)
        if await training.process.wait() != 0 and training.stage != "cancelled":
            _log.warning("the training of %s failed: %s", training.name, last)
            raise TrainingError(last or "the training was stopped, perhaps because memory ran out")

    async def _add(self, training: Training) -> None:
        training.stage, training.done, training.message = "adding", 0.0, ""
        lora = await self._library.add_path(
            training.folder / "lora.safetensors",
            owner=training.team_id,
            labels=Labels(training.name, (training.trigger,)),
            created_by=training.user_name,
        )
        self._on_added(lora)
        training.lora, training.stage, training.done = lora.name, "done", 1.0


async def _follow(training: Training, process: asyncio.subprocess.Process) -> str:
    """Note the progress that the process tells, until it ends. Returns the last line that was none."""
    last = ""
    assert process.stderr is not None  # noqa: S101 - it was asked for
    async for line in process.stderr:
        text = line.decode(errors="replace").strip()[:_LONGEST_LINE]
        try:
            told = json.loads(text)
        except ValueError:
            last = text or last
            continue
        if training.stage != "cancelled" and isinstance(told, dict) and "stage" in told:
            training.stage = "training" if told["stage"] == "training" else "preparing"
            training.done, training.message = float(told["done"]), str(told["message"])
    return last


def _kill(training: Training) -> None:
    if training.process is not None and training.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.process.pid, signal.SIGKILL)


def _write_pictures(folder: Path, pictures: Sequence[TrainingPicture]) -> None:
    """The pictures under numbers, so that no name leads anywhere, each with its caption beside it."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        file = folder / f"{number:04d}{Path(picture.file_name).suffix.lower()}"
        with file.open("wb") as kept:
            shutil.copyfileobj(picture.file, kept, _PIECE)
        if picture.caption.strip():
            file.with_suffix(".txt").write_text(picture.caption.strip() + "\n", "utf-8")
