"""The training set: a folder of pictures with captions in text files beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from schnell.errors import TrainingError, TrainingOptionError

ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
#: Whatever a file's name says, no other of Pillow's decoders reads what somebody uploaded.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP")


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """A picture file and its captions, one of which is chosen at random each time that it is trained on."""

    path: Path
    captions: tuple[str, ...]


def find_pictures(folder: Path, trigger: str) -> tuple[CaptionedPicture, ...]:
    """Every picture of the folder, in the order of names.

    `name.txt` beside `name.png` holds captions, one a line; the trigger word is put in front of those that lack it.
    Without such a file, the trigger word is the caption.

    Raises:
        TrainingOptionError: no folder, no pictures, or an empty trigger word.
        TrainingError: a caption file that is not UTF-8 text.
    """
    if not trigger.strip():
        raise TrainingOptionError("--trigger must be a word, such as `mystyle`")
    if not folder.is_dir():
        raise TrainingOptionError(f"IMAGES must be a folder of pictures: {folder} is none")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not files:
        raise TrainingOptionError(f"{folder} holds no pictures: put .png, .jpg, .webp or .bmp files into it")
    return tuple(CaptionedPicture(path, _captions(path.with_suffix(".txt"), trigger.strip())) for path in files)


def _captions(file: Path, trigger: str) -> tuple[str, ...]:
    if not file.exists():
        return (trigger,)
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{file} cannot be read as UTF-8 text: {error}") from error
    captions = [line if trigger.lower() in line.lower() else f"{trigger}, {line}" for line in lines if line]
    return tuple(captions) or (trigger,)


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB, upright as its EXIF says, on white where it is transparent.

    Raises:
        TrainingError: the file is not a whole picture that Pillow reads.
    """
    try:
        with Image.open(path, formats=_FORMATS) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TrainingError(f"{path} cannot be read: {error}; remove it or save it again") from error
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
