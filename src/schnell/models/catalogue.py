"""The models that schnell knows by name, and how a name or a path becomes a `ModelFolder`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schnell.errors import ModelChoiceError, ModelFolderError
from schnell.models.folder import ModelFolder, embedded_home, models_home, open_model_folder

DEFAULT_MODEL: Final = "schnell-mini"
FLUX_NAME: Final = "flux-schnell"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model by name: the hub repository that it is pulled from (None: it comes with the package), and what it needs.

    `summary`, `licence` and `size` (on disk) are for people to read.
    """

    name: str
    summary: str
    repository: str | None
    licence: str
    size: str

    @property
    def path(self) -> Path:
        """The folder that this model lies in, or will lie in once pulled."""
        return models_home() / self.name if self.repository else embedded_home() / self.name

    @property
    def is_here(self) -> bool:
        """Whether the model can be served without a download."""
        return (self.path / "model_index.json").is_file()


CATALOGUE: Final[tuple[CatalogueEntry, ...]] = (
    CatalogueEntry(
        name="schnell-mini",
        summary="comes with the package; draws 3D icons, on a laptop's CPU",
        repository=None,
        licence="Apache-2.0",
        size="40 MB",
    ),
    CatalogueEntry(
        name=FLUX_NAME,
        summary="FLUX.1 [schnell] by Black Forest Labs, 12 B parameters",
        repository="black-forest-labs/FLUX.1-schnell",
        licence="Apache-2.0 (the repository asks you to accept its terms)",
        size="34 GB",
    ),
)


def catalogue_entry(name: str) -> CatalogueEntry:
    """The entry called `name`.

    Raises:
        ModelChoiceError: no model has that name.
    """
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in CATALOGUE)
    raise ModelChoiceError(f"no model is called {name!r}: it must be one of {known}, or the path of a model folder")


def added_models() -> list[str]:
    """The names of the models that `schnell models add` put into the models folder."""
    return sorted(
        index.parent.name for index in models_home().glob("*/model_index.json") if is_added(index.parent.name)
    )


def is_added(name: str) -> bool:
    """Whether `schnell models add` made a model of this name."""
    # what is being fetched or written has this ending, which no model's name may have
    is_path = Path(name).name != name or name.endswith(".partial")
    is_known = any(entry.name == name for entry in CATALOGUE)
    return not is_path and not is_known and (models_home() / name / "model_index.json").is_file()


def find_model(name_or_path: str) -> ModelFolder:
    """The model with this name, or in the folder at this path. A folder of that name wins over the catalogue.

    A name is the catalogue's, or one that `schnell models add` gave.

    Raises:
        ModelChoiceError: unknown.
        ModelFolderError: not pulled yet, or not a FLUX model.
    """
    if Path(name_or_path).is_dir():
        return open_model_folder(Path(name_or_path))
    if is_added(name_or_path):
        return open_model_folder(models_home() / name_or_path)
    entry = catalogue_entry(name_or_path)
    if not entry.is_here:
        raise ModelFolderError(f"{entry.name} is not on this machine: run `schnell models pull {entry.name}`")
    return open_model_folder(entry.path, entry.name)
