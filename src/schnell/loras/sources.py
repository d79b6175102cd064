"""Find the file that a remote reference stands for, by asking Hugging Face, Civitai or Replicate.

What a site answers is not trusted: values of other types count as missing, and texts are cut and cleaned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from schnell.adapters import CanonicalInfo
from schnell.errors import LoraDownloadError
from schnell.loras.references import CivitaiModel, DirectUrl, HubFile, Reference, ReplicateModel
from schnell.outbound.downloads import Downloader, RemoteFile

#: What trainers call the LoRA of a repository, the likeliest first: such a file is taken where there are several.
_USUAL_FILES: Final = (
    "pytorch_lora_weights.safetensors",
    "lora.safetensors",
    "adapter_model.safetensors",
    "flux-lora.safetensors",
)


@dataclass(frozen=True, slots=True)
class SourceSites:
    """The sites' addresses, and the tokens that are sent to each (None: none)."""

    hub: str = "https://huggingface.co"
    civitai: str = "https://civitai.com"
    replicate: str = "https://replicate.com"
    hub_token: str | None = field(default=None, repr=False)
    civitai_token: str | None = field(default=None, repr=False)
    replicate_token: str | None = field(default=None, repr=False)

    def with_tokens(self, tokens: Mapping[str, str]) -> "SourceSites":
        """The same sites with these tokens, by `huggingface`, `civitai` and `replicate`; others stay as they are."""
        return replace(
            self,
            hub_token=tokens.get("huggingface", self.hub_token),
            civitai_token=tokens.get("civitai", self.civitai_token),
            replicate_token=tokens.get("replicate", self.replicate_token),
        )


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A file to fetch, and what its site says of it. `name` is what it may be called in the library.

    `peft_config` is the `adapter_config.json` beside the file; `note` is put before the message if fetching fails.
    """

    file: RemoteFile
    name: str
    trigger_words: tuple[str, ...] = ()
    licence: str | None = None
    base_model: tuple[str, ...] = ()
    peft_config: RemoteFile | None = None
    note: str = ""

    def complete(self, info: CanonicalInfo) -> CanonicalInfo:
        """What the file says of itself, completed by what its site says."""
        return replace(
            info,
            trigger_words=info.trigger_words or self.trigger_words,
            licence=info.licence or self.licence,
            base_model=tuple(dict.fromkeys((*info.base_model, *self.base_model))),
        )


async def find_source(reference: Reference, sites: SourceSites, downloader: Downloader) -> FoundSource:
    """Find the file of a remote reference.

    `owner/name` is looked for on Hugging Face first, then among the models trained on Replicate.

    Raises:
        LoraSourceError: the site may not be called.
        LoraDownloadError: the site does not answer, or has no such LoRA, or several, or it is a name of the library.
    """
    match reference:
        case HubFile():
            return await _find_on_hub(reference, sites, downloader)
        case CivitaiModel():
            return await _find_on_civitai(reference, sites, downloader)
        case ReplicateModel():
            return _find_on_replicate(reference, sites)
        case DirectUrl():
            return _find_direct(reference, sites)
        case _:
            raise LoraDownloadError(f"no LoRA of this library is called {reference.name!r}")


def address_of(reference: Reference, sites: SourceSites) -> str:
    """The address that is asked first for a remote reference."""
    match reference:
        case CivitaiModel():
            return sites.civitai
        case ReplicateModel():
            return sites.replicate
        case DirectUrl():
            return reference.url
        case _:
            return sites.hub


async def _find_on_hub(reference: HubFile, sites: SourceSites, downloader: Downloader) -> FoundSource:
    revision = f"/revision/{quote(reference.revision, safe='')}" if reference.revision else ""
    listing = RemoteFile(f"{sites.hub}/api/models/{reference.repository}{revision}?blobs=true", token=sites.hub_token)
    found = await downloader.fetch_json(listing)
    if not isinstance(found, Mapping):
        # Replicate's models are written owner/name, too; fetching will show whether it knows this one
        if reference.file is None and reference.revision is None:
            elsewhere = _find_on_replicate(ReplicateModel(reference.repository), sites)
            return replace(elsewhere, note=f"Hugging Face shows no {reference.repository}, and ")
        raise LoraDownloadError(
            f"the hub has no {reference.repository}, or it is private: check the name, or set a token"
        )
    files = {str(each.get("rfilename")): each for each in _objects(found.get("siblings"))}
    name = reference.file or _choose_file(reference.repository, tuple(files))
    base = f"{sites.hub}/{reference.repository}/resolve/{quote(reference.revision or 'main', safe='')}/"
    config = str(PurePosixPath(name).with_name("adapter_config.json"))
    has_config = PurePosixPath(name).name == "adapter_model.safetensors" and config in files
    card = found.get("cardData")
    return FoundSource(
        RemoteFile(base + quote(name), _hub_hash(files.get(name)), sites.hub_token),
        name=reference.repository.partition("/")[2],
        trigger_words=_texts(card, "instance_prompt", "trigger"),
        licence=next(iter(_texts(card, "license")), None),
        base_model=_texts(card, "base_model"),
        peft_config=RemoteFile(base + quote(config), token=sites.hub_token) if has_config else None,
    )


def _choose_file(repository: str, files: tuple[str, ...]) -> str:
    loras = [name for name in files if name.endswith(".safetensors")]
    for usual in _USUAL_FILES:
        if usual in loras:
            return usual
    if len(loras) == 1:
        return loras[0]
    if not loras:
        raise LoraDownloadError(f"{repository} on the hub holds no .safetensors file")
    names = ", ".join(sorted(loras)[:8])
    raise LoraDownloadError(
        f"{repository} on the hub holds {len(loras)} .safetensors files ({names}); "
        f"name one as huggingface.co/{repository}/FILE.safetensors"
    )


def _hub_hash(file: Mapping[str, Any] | None) -> str | None:
    lfs = file.get("lfs") if file else None
    value = lfs.get("sha256") if isinstance(lfs, Mapping) else None
    return value if isinstance(value, str) and len(value) == 64 else None


async def _find_on_civitai(reference: CivitaiModel, sites: SourceSites, downloader: Downloader) -> FoundSource:
    address = f"{sites.civitai}/api/v1/models/{reference.model}"
    found = await downloader.fetch_json(RemoteFile(address, token=sites.civitai_token))
    versions = _objects(found.get("modelVersions")) if isinstance(found, Mapping) else []
    chosen = [each for each in versions if reference.version in {None, each.get("id")}]
    if not chosen:
        raise LoraDownloadError(f"Civitai has no model {reference.model}, or not this version of it")
    files = [file for file in _objects(chosen[0].get("files")) if str(file.get("name")).endswith(".safetensors")]
    file = next((file for file in files if isinstance(file.get("downloadUrl"), str)), None)
    if file is None:
        raise LoraDownloadError(f"model {reference.model} on Civitai holds no .safetensors file")
    hashes = file.get("hashes")
    digest = hashes.get("SHA256") if isinstance(hashes, Mapping) else None
    return FoundSource(
        RemoteFile(file["downloadUrl"], digest if isinstance(digest, str) else None, sites.civitai_token),
        name=str(found.get("name", reference.model)),
        trigger_words=_texts(chosen[0], "trainedWords"),
        base_model=_texts(chosen[0], "baseModel"),
    )


def _find_on_replicate(reference: ReplicateModel, sites: SourceSites) -> FoundSource:
    version = f"/versions/{reference.version}" if reference.version else ""
    file = RemoteFile(f"{sites.replicate}/{reference.model}{version}/_weights", token=sites.replicate_token)
    return FoundSource(file, name=reference.model.partition("/")[2])


def _find_direct(reference: DirectUrl, sites: SourceSites) -> FoundSource:
    tokens = (
        (sites.hub, sites.hub_token),
        (sites.civitai, sites.civitai_token),
        (sites.replicate, sites.replicate_token),
    )
    # the slash ends the host's name: huggingface.co.evil.test is another
    token = next((token for site, token in tokens if reference.url.startswith(f"{site}/")), None)
    stem = PurePosixPath(reference.url.partition("?")[0]).stem
    return FoundSource(RemoteFile(reference.url, token=token), name=stem)


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _texts(card: object, *names: str) -> tuple[str, ...]:
    if not isinstance(card, Mapping):
        return ()
    values = [value for name in names for value in _as_list(card.get(name))]
    lines = [_one_line(value) for value in values if isinstance(value, str)]
    return tuple(line for line in lines if line)[:16]


def _one_line(text: str) -> str:
    # PostgreSQL stores no NUL, and a line break would spoil a table of the command line
    return "".join(character for character in text if character.isprintable()).strip()[:200]


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
