import hashlib
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_libraries import TEAM, MakeLibrary, resolve, serve_hub
from mini_loras import lora_bytes, trainer_tar
from schnell.adapters import LowRank, read_adapter
from schnell.errors import LoraDownloadError
from schnell.loras.references import CivitaiModel, DirectUrl, HubFile, LibraryName, Reference, ReplicateModel
from schnell.loras.sources import FoundSource, SourceSites, find_source
from schnell.outbound.addresses import AddressPolicy
from schnell.outbound.downloads import Downloader, RemoteFile
from schnell.spec import LoraRef
from tls_server import TlsServer


async def test_a_repository_of_several_loras_is_refused_naming_them(make: MakeLibrary, site: TlsServer) -> None:
    serve_hub(site, "owner/name", {"a.safetensors": lora_bytes(1), "b.safetensors": lora_bytes(2)})
    with pytest.raises(LoraDownloadError, match=r"a\.safetensors, b\.safetensors"):
        await resolve(make(), "owner/name")
    assert len(await resolve(make(), "huggingface.co/owner/name/b.safetensors")) == 1


async def test_pefts_configuration_in_a_repository_sets_the_scale(make: MakeLibrary, site: TlsServer) -> None:
    data = lora_bytes(4)
    config = json.dumps({"r": 2, "lora_alpha": 6}).encode()
    serve_hub(site, "owner/peft", {"adapter_model.safetensors": data, "adapter_config.json": config})
    serve_hub(site, "owner/plain", {"adapter_model.safetensors": data})
    library = make()
    uses = await library.resolve([LoraRef("owner/peft"), LoraRef("owner/plain")], TEAM)
    scaled, plain = (next(iter(read_adapter(use.path).modules.values())) for use in uses)
    assert isinstance(scaled, LowRank)
    assert isinstance(plain, LowRank)
    assert (scaled.b == 3 * plain.b).all()


async def test_owner_and_name_that_the_hub_lacks_are_looked_for_at_replicate(
    make: MakeLibrary, site: TlsServer
) -> None:
    site.redirect("/replicate/owner/trained/_weights", site.url("/delivery/trained_model.tar", "127.0.0.1"))
    site.serve("/delivery/trained_model.tar", trainer_tar(lora_bytes(5), "PIXEL"))
    library = make()
    added = await library.add("owner/trained", owner=TEAM, created_by="me")
    assert (added.name, added.trigger_words) == ("trained", ("PIXEL",))
    with pytest.raises(LoraDownloadError, match="Hugging Face shows no owner/nothing, and localhost has no such file"):
        await resolve(library, "owner/nothing")


async def test_civitai_tells_file_hash_trigger_words_and_base_model(make: MakeLibrary, site: TlsServer) -> None:
    data = lora_bytes(6)
    digest = hashlib.sha256(data).hexdigest()
    file = {"name": "x.safetensors", "downloadUrl": site.url("/civitai/get/7"), "hashes": {"SHA256": digest.upper()}}
    version = {"id": 7, "trainedWords": ["xyz\u0000", "\n"], "baseModel": "Flux.1 S", "files": [file]}
    site.serve_json("/civitai/api/v1/models/12", json.dumps({"name": "My Style! \u0000", "modelVersions": [version]}))
    site.serve("/civitai/get/7", data)
    added = await make().add("civitai.com/models/12", owner=TEAM, created_by="me")
    assert (added.name, added.trigger_words, added.base_model) == ("my-style", ("xyz",), ("Flux.1 S",))


# reading the machine's certificates for each would be most of the work
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Answers(Downloader):
    """Gives the same JSON for every file."""

    def __init__(self, answer: object) -> None:
        super().__init__(Path("nowhere"), AddressPolicy(), offline=True, authorities=_NO_AUTHORITIES)
        self.asked: list[RemoteFile] = []
        self._answer = answer

    async def fetch_json(self, file: RemoteFile) -> Any:
        self.asked.append(file)
        return self._answer


SITES = SourceSites(hub_token="hub", civitai_token="civitai", replicate_token="replicate")


async def find(reference: Reference, answer: object = None) -> FoundSource:
    return await find_source(reference, SITES, Answers(answer))


def hub(*names: str, **card: object) -> dict[str, object]:
    return {"siblings": [{"rfilename": name} for name in names], "cardData": card}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["one.safetensors", "README.md"], "one.safetensors"),
        (["a.safetensors", "lora.safetensors"], "lora.safetensors"),
        (["lora.safetensors", "pytorch_lora_weights.safetensors"], "pytorch_lora_weights.safetensors"),
        (["b.safetensors", "flux-lora.safetensors"], "flux-lora.safetensors"),
    ],
)
async def test_the_one_lora_or_the_usual_one_of_a_repository_is_chosen(names: list[str], chosen: str) -> None:
    found = await find(HubFile("owner/name"), hub(*names))
    assert found.file.url == f"https://huggingface.co/owner/name/resolve/main/{chosen}"
    assert (found.file.token, found.name) == ("hub", "name")


@pytest.mark.parametrize(("names", "complaint"), [([], "no .safetensors"), (["x.bin"], "no .safetensors")])
async def test_a_repository_without_a_lora_is_refused(names: list[str], complaint: str) -> None:
    with pytest.raises(LoraDownloadError, match=complaint):
        await find(HubFile("owner/name"), hub(*names))


async def test_a_file_and_a_revision_are_asked_for_as_named() -> None:
    downloader = Answers(hub("a b.safetensors"))
    found = await find_source(HubFile("owner/name", "a b.safetensors", "refs/pr/1"), SITES, downloader)
    [listing] = downloader.asked
    assert listing.url == "https://huggingface.co/api/models/owner/name/revision/refs%2Fpr%2F1?blobs=true"
    assert found.file.url == "https://huggingface.co/owner/name/resolve/refs%2Fpr%2F1/a%20b.safetensors"
    with pytest.raises(LoraDownloadError, match="or it is private"):
        await find_source(HubFile("owner/name", "x.safetensors"), SITES, Answers(None))


async def test_the_hubs_card_says_words_licence_and_base_model() -> None:
    card = {"instance_prompt": "TOK", "trigger": ["a", 7, "b\n"], "license": ["cc0-1.0"], "base_model": "flux"}
    found = await find(HubFile("owner/name"), hub("x.safetensors", **card))
    assert (found.trigger_words, found.licence, found.base_model) == (("TOK", "a", "b"), "cc0-1.0", ("flux",))


async def test_pefts_configuration_lies_beside_its_file() -> None:
    names = ["v1/adapter_model.safetensors", "v1/adapter_config.json", "x.safetensors"]
    found = await find(HubFile("owner/name", "v1/adapter_model.safetensors"), hub(*names))
    assert found.peft_config is not None
    assert found.peft_config.url == "https://huggingface.co/owner/name/resolve/main/v1/adapter_config.json"
    assert (await find(HubFile("owner/name", "x.safetensors"), hub(*names))).peft_config is None


def civitai(*versions: dict[str, object]) -> dict[str, object]:
    return {"name": "Style", "modelVersions": list(versions)}


def version(number: int, *files: dict[str, object]) -> dict[str, object]:
    return {"id": number, "files": list(files)}


def civitai_file(name: str, url: str | None, digest: str | None = None) -> dict[str, object]:
    return {"name": name, "downloadUrl": url, "hashes": {"SHA256": digest}}


async def test_civitai_gives_the_newest_version_or_the_named_one() -> None:
    model = civitai(
        version(9, civitai_file("new.safetensors", "https://civitai.com/9", "AB")),
        version(
            8, civitai_file("x.ckpt", "https://civitai.com/x"), civitai_file("old.safetensors", "https://civitai.com/8")
        ),
    )
    newest, older = await find(CivitaiModel(1), model), await find(CivitaiModel(1, 8), model)
    assert newest.file == RemoteFile("https://civitai.com/9", "AB", "civitai")
    assert older.file == RemoteFile("https://civitai.com/8", None, "civitai")
    with pytest.raises(LoraDownloadError, match="or not this version of it"):
        await find(CivitaiModel(1, 7), model)
    with pytest.raises(LoraDownloadError, match=r"holds no \.safetensors file"):
        await find(CivitaiModel(1), civitai(version(9, civitai_file("x.ckpt", "https://civitai.com/x"))))


async def test_a_civitai_file_has_its_own_hash_where_the_first_has_no_address() -> None:
    model = civitai(
        version(
            9, civitai_file("a.safetensors", None, "AA"), civitai_file("b.safetensors", "https://civitai.com/b", "BB")
        )
    )
    assert (await find(CivitaiModel(1), model)).file == RemoteFile("https://civitai.com/b", "BB", "civitai")


async def test_a_model_trained_on_replicate_is_its_weights() -> None:
    newest, fixed = await find(ReplicateModel("owner/name")), await find(ReplicateModel("owner/name", "abc"))
    assert newest.file == RemoteFile("https://replicate.com/owner/name/_weights", token="replicate")
    assert fixed.file == RemoteFile("https://replicate.com/owner/name/versions/abc/_weights", token="replicate")


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("https://huggingface.co/x.safetensors", "hub"),
        ("https://civitai.com/api/download/models/5", "civitai"),
        ("https://replicate.com/x.tar", "replicate"),
        ("https://huggingface.co.evil.test/x.safetensors", None),
        ("https://example.com/https://huggingface.co/x.safetensors", None),
    ],
)
async def test_a_url_gets_the_token_of_its_own_site_alone(url: str, token: str | None) -> None:
    assert (await find(DirectUrl(url))).file == RemoteFile(url, token=token)


async def test_a_library_name_is_found_at_no_site() -> None:
    with pytest.raises(LoraDownloadError, match="no LoRA of this library is called 'style'"):
        await find(LibraryName("style"))


def test_a_teams_tokens_go_before_the_servers_and_are_not_shown() -> None:
    own = SITES.with_tokens({"civitai": "secret-of-a-team"})
    assert (own.hub_token, own.civitai_token, own.replicate_token) == ("hub", "secret-of-a-team", "replicate")
    assert "secret-of-a-team" not in repr(own)
    assert SITES.civitai_token == "civitai"


KEYS = [
    "siblings",
    "rfilename",
    "lfs",
    "sha256",
    "cardData",
    "trigger",
    "license",
    "base_model",
    "modelVersions",
    "id",
    "name",
    "files",
    "downloadUrl",
    "hashes",
    "SHA256",
    "trainedWords",
    "baseModel",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("a.safetensors"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values, st.sampled_from([HubFile("owner/name"), HubFile("owner/name", "a.safetensors"), CivitaiModel(1)]))
async def test_whatever_a_site_answers_is_a_file_or_refused(answer: object, reference: Reference) -> None:
    try:
        found = await find(reference, answer)
    except LoraDownloadError:
        return
    texts = [*found.trigger_words, *found.base_model, *([found.licence] if found.licence else [])]
    assert all(text and text.isprintable() and len(text) <= 200 for text in texts)
    assert isinstance(found.file.url, str)
    assert found.file.sha256 is None or isinstance(found.file.sha256, str)
