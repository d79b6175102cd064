from random import Random

import torch

from schnell_mini import layout
from schnell_mini.appearance_codes import AppearanceCodes, BackgroundCodes
from schnell_mini.code_conditioning import CODE_JITTER, Codebook, CodeConditioner, CodeEmbedder, conditioned_by_codes
from schnell_mini.networks import Shape, build_transformer


def test_codes_are_read_back_from_the_embedding_that_holds_them() -> None:
    codes = torch.randn(3, layout.ALL_CODES)
    embedded = torch.nn.functional.silu(CodeEmbedder(256)(codes))[:, : layout.ALL_CODES]
    assert torch.allclose((embedded - layout.CODE_OFFSET) / layout.CODE_SPREAD, codes, atol=1e-4)


def test_the_text_embedder_is_back_in_place_after_conditioning_on_codes() -> None:
    transformer = build_transformer(Shape(double_blocks=1, single_blocks=1))
    embedder = transformer.time_text_embed.text_embedder
    with conditioned_by_codes(transformer):
        assert transformer.time_text_embed.text_embedder is not embedder
    assert transformer.time_text_embed.text_embedder is embedder


def test_every_icon_gets_its_own_codes_and_is_disturbed_a_little() -> None:
    torch.manual_seed(0)
    appearance = AppearanceCodes(torch.randn(3, layout.APPEARANCE_CODES), torch.ones(layout.APPEARANCE_CODES))
    background = BackgroundCodes(torch.randn(2, layout.BACKGROUND_CODES), torch.randn(3, 16))
    states = torch.randn(4, 32, 8)
    conditioner = CodeConditioner(Codebook(appearance, background), states)
    prompts = conditioner.condition(Random(0), torch.tensor([2, 0]), torch.tensor([1, 0]))
    for prompt, icon, colour in zip(prompts, (2, 0), (1, 0), strict=True):
        exact = torch.cat([appearance.codes[icon], background.codes[colour]])
        assert 0 < (prompt.pooled - exact).std() < 1.5 * CODE_JITTER
        assert any(torch.equal(prompt.states, one) for one in states)
