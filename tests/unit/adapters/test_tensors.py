import contextlib
import json
from io import BufferedReader
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from schnell.adapters.keys import split_key
from schnell.adapters.tensors import Array, TensorWriter, parse_header, read_header, read_tensor
from schnell.errors import AdapterError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "NO"]),
        "shape": st.lists(st.integers(-1, 5), max_size=5),
        "data_offsets": st.lists(st.integers(-2, 90), min_size=1, max_size=3),
    }
)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_as_header_are_parsed_or_refused(text: bytes, size: int) -> None:
    with contextlib.suppress(AdapterError):
        parse_header(text, size)


@given(st.dictionaries(st.text(max_size=8), JSON | ENTRY, max_size=5), st.integers(0, 200))
def test_accepted_headers_cover_the_file_exactly(header: dict[str, object], size: int) -> None:
    text = json.dumps(header).encode()
    try:
        parsed = parse_header(text, len(text) + 8 + size)
    except AdapterError:
        return
    spans = sorted((entry.start, entry.stop) for entry in parsed.entries.values())
    edges = [8 + len(text), *(stop for _, stop in spans)]
    assert [start for start, _ in spans] == edges[:-1]
    assert edges[-1] == len(text) + 8 + size


@given(st.text(max_size=80))
def test_any_key_is_split_or_left(key: str) -> None:
    parsed = split_key(key)
    assert parsed is None or key.startswith(parsed.prefix + parsed.module)


def test_what_the_writer_writes_safetensors_reads(tmp_path: Path) -> None:
    values: dict[str, Array] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.5, -2], np.float16)}
    with TensorWriter(tmp_path / "out.safetensors", 1000) as writer:
        for name, array in values.items():
            writer.add(name, array)
        writer.finish({"format": "x"})
    read = load_file(tmp_path / "out.safetensors")
    assert {name: array.tolist() for name, array in read.items()} == {n: a.tolist() for n, a in values.items()}
    header = read_header(tmp_path / "out.safetensors")
    assert header.metadata == {"format": "x"}
    with (tmp_path / "out.safetensors").open("rb") as file:
        assert isinstance(file, BufferedReader)
        np.testing.assert_array_equal(read_tensor(file, header.entries["a"]), values["a"])


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="header"), TensorWriter(tmp_path / "out.safetensors", 8) as writer:
        writer.finish({"format": "longer than the room"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0x0280, 0x0480])
def test_a_header_length_that_looks_like_a_pickle_is_still_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + text + b"\0" * 4)
    assert set(read_header(path).entries) == {"a"}
