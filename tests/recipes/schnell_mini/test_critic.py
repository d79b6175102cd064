import torch
from torch import Tensor, nn
from torch.nn import functional

from schnell_mini.critic import (
    MOST_WEIGHT,
    Critic,
    balance_weight,
    critic_loss,
    criticism,
    edge_strength,
    judged_patches,
)


def stripes(softness: int) -> Tensor:
    """Stripes `[1, 3, 64, 64]` in -1..1, blurred over so many pixels."""
    sharp = torch.where(torch.arange(64) % 16 < 8, 1.0, -1.0).expand(1, 3, 64, 64)
    return functional.avg_pool2d(functional.pad(sharp, (softness,) * 4, mode="replicate"), 2 * softness + 1, 1)


def test_a_soft_edge_is_weaker_than_a_sharp_one_wherever_it_lies() -> None:
    sharp, soft = stripes(0), stripes(2)
    assert edge_strength(soft).mean() < 0.7 * edge_strength(sharp).mean()
    moved = torch.roll(sharp, 2, 3)
    assert torch.allclose(edge_strength(moved)[..., 1:-1], edge_strength(sharp)[..., 1:-1], atol=1e-3)


def test_plain_patches_are_not_judged() -> None:
    wanted = torch.ones(1, 3, 64, 64)
    assert judged_patches(wanted, wanted).sum() == 0
    wanted[..., :8, :8] = stripes(0)[..., 4:12, 4:12]
    weights = judged_patches(torch.ones_like(wanted), wanted)
    assert weights[0, 0, 0, 0] > 0
    assert weights[0, 0, 4:, 4:].sum() == 0


def test_a_critic_learns_to_tell_soft_from_sharp_and_a_decoder_hears_it() -> None:
    torch.manual_seed(0)
    critic, sharp, soft = Critic(8), stripes(0), stripes(2)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2)
    before = critic_loss(critic, soft, sharp)
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(critic_loss(critic, soft, sharp))
        optimizer.step()
    assert critic_loss(critic, soft, sharp) < before / 2
    assert criticism(critic, soft, sharp) > criticism(critic, sharp, sharp) + 1


def test_both_losses_pull_equally_at_the_last_layer() -> None:
    last = nn.Parameter(torch.ones(4))
    assert abs(balance_weight(3 * last.sum(), last.sum(), last) - 3) < 1e-3
    assert balance_weight(last.sum(), 1e-4 * last.sum(), last) == MOST_WEIGHT
