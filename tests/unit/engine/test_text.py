import torch

from schnell.engine.text import PromptCache, PromptEmbedding

ONE = PromptEmbedding(torch.zeros(8, 4), torch.zeros(4), was_truncated=False)


def test_a_kept_prompt_is_found_and_another_is_not() -> None:
    cache = PromptCache(ONE.nbytes)
    cache.put("apple", ONE)
    assert cache.get("apple") is ONE
    assert cache.get("tree") is None


def test_the_longest_unused_prompt_goes_first() -> None:
    cache = PromptCache(2 * ONE.nbytes)
    cache.put("a", ONE)
    cache.put("b", ONE)
    cache.get("a")
    cache.put("c", ONE)
    assert cache.get("b") is None
    assert cache.get("a") is ONE


def test_putting_a_prompt_again_does_not_count_it_twice() -> None:
    cache = PromptCache(2 * ONE.nbytes)
    for _ in range(5):
        cache.put("a", ONE)
    cache.put("b", ONE)
    assert cache.get("a") is ONE
