"""From prompts to what the transformer is conditioned on: T5's state of every token, and CLIP's pooled vector.

`TextEncoder` runs both tokenizers and networks; `PromptCache` keeps the embeddings of recent prompts, as the same
prompt comes with many seeds.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from schnell.models.folder import read_json


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """A prompt as the transformer is conditioned on it, in the networks' dtype and on their device.

    `states` is (tokens, T5 width), `pooled` is (CLIP width). `was_truncated`: the prompt had more tokens than T5 reads.
    `warning` is what its author should know about the prompt itself.
    """

    states: Tensor
    pooled: Tensor
    was_truncated: bool
    warning: str | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of both tensors."""
        return self.states.nbytes + self.pooled.nbytes


@dataclass(frozen=True, slots=True)
class TokenizedPrompts:
    """Token ids (batch, tokens), int64, cut or padded to one length, and for each prompt whether it was cut."""

    ids: Tensor
    truncated: tuple[bool, ...]


class PromptTokenizer:
    """The tokenizer of a model folder, cutting and padding to `sequence_length` or else to the length it was made for.

    Read by the `tokenizers` library alone: transformers' wrapper around it costs a second to import.

    Raises:
        ModelFolderError: its configuration is missing or cannot be read.
    """

    def __init__(self, folder: Path, sequence_length: int | None = None) -> None:
        config = read_json(folder / "tokenizer_config.json")
        length = int(sequence_length or config["model_max_length"])
        self._tokenizer = _read_tokenizer(folder)
        pad = _token_text(config["pad_token"])
        self._tokenizer.enable_truncation(max_length=length)
        self._tokenizer.enable_padding(length=length, pad_id=self._tokenizer.token_to_id(pad), pad_token=pad)

    def tokenize(self, prompts: Sequence[str]) -> TokenizedPrompts:
        """Ids of every prompt, cut or padded to the sequence length."""
        encodings = self._tokenizer.encode_batch(list(prompts))
        return TokenizedPrompts(
            ids=torch.tensor([encoding.ids for encoding in encodings], dtype=torch.long),
            truncated=tuple(bool(encoding.overflowing) for encoding in encodings),
        )


class TextEncoder:
    """Both text encoders of a FLUX model, with the tokenizers in `folder`.

    `sequence_length` counts T5's tokens; CLIP's length is its own tokenizer's (77 for FLUX.1).
    """

    def __init__(self, folder: Path, sequence_length: int, clip: nn.Module, t5: nn.Module) -> None:
        self._clip_tokenizer = PromptTokenizer(folder / "tokenizer")
        self._t5_tokenizer = PromptTokenizer(folder / "tokenizer_2", sequence_length)
        self._clip = clip
        self._t5 = t5
        self._t5_device = computing_device(t5)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """One embedding a prompt, in the prompts' order. All prompts are one batch."""
        device = next(self._clip.parameters()).device
        clip_tokens = self._clip_tokenizer.tokenize(prompts)
        t5_tokens = self._t5_tokenizer.tokenize(prompts)
        pooled = self._clip(clip_tokens.ids.to(device))
        states = self._t5(t5_tokens.ids.to(self._t5_device)).to(device)
        # clones: a row of the batch's tensors would keep the whole batch in memory for as long as it is cached
        return [
            PromptEmbedding(states[i].clone(), pooled[i].clone(), t5_tokens.truncated[i]) for i in range(len(prompts))
        ]


def computing_device(t5: nn.Module) -> torch.device:
    """Where T5 computes: its last norm is there, while its blocks' weights may wait elsewhere."""
    *_, last = t5.parameters()
    return last.device


class PromptCache:
    """The embeddings of recent prompts, least recently used out first, within `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._embeddings: OrderedDict[Hashable, PromptEmbedding] = OrderedDict()

    def get(self, key: Hashable) -> PromptEmbedding | None:
        """The embedding kept under this key, if it is still there; it is then the most recently used."""
        embedding = self._embeddings.get(key)
        if embedding is not None:
            self._embeddings.move_to_end(key)
        return embedding

    def put(self, key: Hashable, embedding: PromptEmbedding) -> None:
        """Keep an embedding, and drop the least recently used ones that no longer fit, itself if it is too large."""
        previous = self._embeddings.pop(key, None)
        self._bytes -= previous.nbytes if previous else 0
        self._embeddings[key] = embedding
        self._bytes += embedding.nbytes
        while self._bytes > self._max_bytes:
            _, dropped = self._embeddings.popitem(last=False)
            self._bytes -= dropped.nbytes


def _read_tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    # folders saved by older versions hold only vocabulary files, which transformers knows how to convert
    from transformers import AutoTokenizer

    converted = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Tokenizer.from_str(converted.backend_tokenizer.to_str())


def _token_text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
