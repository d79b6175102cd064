from collections import OrderedDict
from collections.abc import Hashable

from schnell.engine.text import PromptEmbedding


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
