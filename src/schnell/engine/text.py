"""Prompts become what the transformer attends to: T5 states for every token, and one pooled CLIP vector."""

import json
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from schnell.errors import ModelFolderError


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """A prompt as the transformer reads it.

    `states` is (sequence, T5 width), `pooled` is (CLIP width). `was_truncated` tells that the T5 side lost words.
    """

    states: Tensor
    pooled: Tensor
    was_truncated: bool

    @property
    def nbytes(self) -> int:
        """The memory that this embedding holds."""
        return self.states.nbytes + self.pooled.nbytes


@dataclass(frozen=True, slots=True)
class TokenizedPrompts:
    """Token ids (batch, sequence), padded, and which prompts did not fit."""

    ids: Tensor
    truncated: tuple[bool, ...]


class PromptTokenizer:
    """A tokenizer folder, read by the `tokenizers` library alone (transformers' wrapper costs a second to import)."""

    def __init__(self, folder: Path, sequence_length: int | None = None) -> None:
        config = _read_config(folder / "tokenizer_config.json")
        self._length = int(sequence_length or config["model_max_length"])
        self._tokenizer = _read_tokenizer(folder)
        pad = _token_text(config["pad_token"])
        self._tokenizer.enable_truncation(max_length=self._length)
        self._tokenizer.enable_padding(length=self._length, pad_id=self._tokenizer.token_to_id(pad), pad_token=pad)

    def tokenize(self, prompts: Sequence[str]) -> TokenizedPrompts:
        """Ids of every prompt, cut or padded to the sequence length."""
        encodings = self._tokenizer.encode_batch(list(prompts))
        return TokenizedPrompts(
            ids=torch.tensor([encoding.ids for encoding in encodings], dtype=torch.long),
            truncated=tuple(bool(encoding.overflowing) for encoding in encodings),
        )


class TextEncoder:
    """Both text encoders of a FLUX model, with their tokenizers."""

    def __init__(self, folder: Path, sequence_length: int, clip: nn.Module, t5: nn.Module) -> None:
        self._clip_tokenizer = PromptTokenizer(folder / "tokenizer")
        self._t5_tokenizer = PromptTokenizer(folder / "tokenizer_2", sequence_length)
        self._clip = clip
        self._t5 = t5

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """One embedding a prompt, in the prompts' order."""
        device = next(self._clip.parameters()).device
        clip_tokens = self._clip_tokenizer.tokenize(prompts)
        t5_tokens = self._t5_tokenizer.tokenize(prompts)
        pooled = self._clip(clip_tokens.ids.to(device))
        states = self._t5(t5_tokens.ids.to(device))
        # clones, so that keeping one prompt does not keep its whole batch
        return [
            PromptEmbedding(states[i].clone(), pooled[i].clone(), t5_tokens.truncated[i]) for i in range(len(prompts))
        ]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from error
    return config


def _read_tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    # older folders hold only vocabulary files, which transformers knows how to convert
    from transformers import AutoTokenizer

    converted = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Tokenizer.from_str(converted.backend_tokenizer.to_str())


def _token_text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


class PromptCache:
    """The embeddings of recent prompts, least recently used out first, within `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._embeddings: OrderedDict[Hashable, PromptEmbedding] = OrderedDict()

    def get(self, key: Hashable) -> PromptEmbedding | None:
        """The embedding kept under this key, if it is still there."""
        embedding = self._embeddings.get(key)
        if embedding is not None:
            self._embeddings.move_to_end(key)
        return embedding

    def put(self, key: Hashable, embedding: PromptEmbedding) -> None:
        """Keep an embedding, and drop the oldest ones that no longer fit."""
        previous = self._embeddings.pop(key, None)
        self._bytes -= previous.nbytes if previous else 0
        self._embeddings[key] = embedding
        self._bytes += embedding.nbytes
        while self._bytes > self._max_bytes:
            _, dropped = self._embeddings.popitem(last=False)
            self._bytes -= dropped.nbytes
