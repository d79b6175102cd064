"""One vocabulary for both text encoders, and their tokenizers: T5's puts two anchor tokens before every text."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

MAX_TOKENS = 32
ANCHORS = ("<a0>", "<a1>")
SPECIAL = ("<pad>", "</s>", "<unk>", *ANCHORS)


def train_vocabulary(texts: Iterable[str], size: int) -> Tokenizer:
    """A lower-case Unigram vocabulary without punctuation (Kudo 2018), for both encoders."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\w'#*&+\-]+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_tokenizer(vocabulary: Tokenizer, prefix: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A transformers tokenizer of 32 tokens; `prefix` tokens stand before every text."""
    tokenizer = Tokenizer.from_str(vocabulary.to_str())
    used = [(word, SPECIAL.index(word)) for word in (*prefix, "</s>")]
    template = " ".join((*prefix, "$A", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Token ids, padded or truncated: `[N, 32]`."""
    out = tokenizer(list(texts), padding="max_length", truncation=True, max_length=MAX_TOKENS)
    return torch.tensor(out["input_ids"])
