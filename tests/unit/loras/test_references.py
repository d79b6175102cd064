import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import InvalidFieldError
from schnell.loras.references import (
    CivitaiModel,
    DirectUrl,
    HubFile,
    LibraryName,
    Reference,
    ReplicateModel,
    is_library_name,
    parse_reference,
    suggest_name,
)

VERSION = "0" * 63 + "a"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("black-light", LibraryName("black-light")),
        (" Black-Light ", LibraryName("black-light")),
        ("fofr/flux-black-light", HubFile("fofr/flux-black-light")),
        ("owner/name/v2", HubFile("owner/name", revision="v2")),
        ("owner/name/lora.safetensors", HubFile("owner/name", file="lora.safetensors")),
        (f"owner/name/{VERSION}", ReplicateModel("owner/name", VERSION)),
        ("huggingface.co/owner/name", HubFile("owner/name")),
        ("https://huggingface.co/owner/name", HubFile("owner/name")),
        ("huggingface.co/owner/name/a/b.safetensors", HubFile("owner/name", "a/b.safetensors")),
        ("https://huggingface.co/o/n/resolve/main/a.safetensors?download=true", HubFile("o/n", "a.safetensors")),
        ("https://huggingface.co/o/n/blob/v1/a.safetensors", HubFile("o/n", "a.safetensors", "v1")),
        ("civitai.com/models/618692", CivitaiModel(618692)),
        ("https://civitai.com/models/618692/some-name?modelVersionId=691639", CivitaiModel(618692, 691639)),
        ("https://civitai.com/api/download/models/5", DirectUrl("https://civitai.com/api/download/models/5")),
        ("replicate.com/owner/name", ReplicateModel("owner/name")),
        (f"https://replicate.com/owner/name/versions/{VERSION}", ReplicateModel("owner/name", VERSION)),
        ("https://example.com/a/lora.safetensors?x=1", DirectUrl("https://example.com/a/lora.safetensors?x=1")),
        ("https://replicate.delivery/x/trained_model.tar", DirectUrl("https://replicate.delivery/x/trained_model.tar")),
    ],
)
def test_every_form_of_reference_is_read(text: str, meaning: Reference) -> None:
    assert parse_reference(text) == meaning


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "printable"),
        ("x" * 4097, "1-4096"),
        ("a\nb", "printable"),
        ("http://example.com/a.safetensors", "only https"),
        ("file:///etc/passwd", "only https"),
        ("ftp://example.com/a.safetensors", "only https"),
        ("https://user:secret@example.com/a.safetensors", "without a user name"),
        ("https://example.com/a.ckpt", "must end in .safetensors"),
        ("https://[::1/a.safetensors", "cannot be|can be read|not an address"),
        ("../../etc/passwd", "names no LoRA"),
        ("a/b/c/d", "names no LoRA"),
        ("huggingface.co/owner", "owner/name"),
        ("huggingface.co/owner/name/pickle.bin", r"\.safetensors"),
        ("civitai.com/models/abc", "models/ID"),
        ("replicate.com/owner/name/versions/1", "64 hexadecimal"),
    ],
)
def test_what_is_no_reference_is_refused_naming_the_field(text: str, complaint: str) -> None:
    with pytest.raises(InvalidFieldError, match=complaint) as caught:
        parse_reference(text, "extra_lora")
    assert caught.value.problems[0].field == "extra_lora"


@given(st.text(max_size=60) | st.from_regex(r"https://[a-z.:/\[\]@%?#0-9]{0,40}", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidFieldError):
        parse_reference(text)


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,99}", fullmatch=True)
owners = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", fullmatch=True)
paths = st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), min_size=1, max_size=3).map("/".join)


@given(names)
def test_every_library_name_is_read_as_itself_in_any_case(name: str) -> None:
    assert is_library_name(name)
    if name not in {"huggingface.co", "hf.co", "civitai.com", "replicate.com"}:
        assert parse_reference(name) == parse_reference(f" {name.upper()} ") == LibraryName(name)


@given(owners, owners, paths)
def test_every_repository_and_file_of_it_is_read_with_and_without_its_host(owner: str, name: str, path: str) -> None:
    repository, file = f"{owner}/{name}", f"{path}.safetensors"
    if owner.lower() in {"huggingface.co", "hf.co", "civitai.com", "replicate.com"}:
        return
    assert parse_reference(repository) == HubFile(repository)
    for host in ("huggingface.co", "https://huggingface.co", "https://HF.co", "www.huggingface.co"):
        assert parse_reference(f"{host}/{repository}") == HubFile(repository)
        assert parse_reference(f"{host}/{repository}/{file}") == HubFile(repository, file)
        assert parse_reference(f"{host}/{repository}/resolve/main/{file}") == HubFile(repository, file)
        assert parse_reference(f"{host}/{repository}/blob/v1/{file}") == HubFile(repository, file, "v1")


@given(st.text(max_size=200))
def test_a_suggested_name_is_always_one_that_the_library_takes(text: str) -> None:
    name = suggest_name(text)
    assert is_library_name(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My Style!", "my-style"),
        ("Crème Brûlée", "creme-brulee"),
        ("画", "lora"),
        ("--x--", "x"),
        ("a" * 150, "a" * 100),
    ],
)
def test_a_name_is_suggested_without_accents_and_spaces(text: str, name: str) -> None:
    assert suggest_name(text) == name


@pytest.mark.parametrize("text", ["", "-x", ".x", "A", "a b", "a/b", "é", "a" * 101, "a\n"])
def test_what_a_lora_may_not_be_called_is_no_library_name(text: str) -> None:
    assert not is_library_name(text)
