"""The f16 autoencoder: five levels, 16 channels, so that a picture of 256 pixels is 64 tokens.

Its outer four levels start as those of an f8 autoencoder of the same widths; only what lies below them is new. The new
levels learn first, from the outer levels' features alone (greedy layer-wise training, Bengio et al. 2006): no
convolution at full size runs, which makes an update some twenty times as cheap. They need not find a code of their own:
the first principal components of two by two f8 latents hold 98% of what these vary by, and so both halves have a known
target. Then the whole learns on pixels.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from schnell_mini.autoencoder import picture_loss
from schnell_mini.critic import Critic, critic_loss, criticism
from schnell_mini.loop import mixed_precision, optimizer_step, rate_factor

CHANNELS = (16, 32, 64, 96, 96)
RATE = 1.2e-3
FINISHING_RATE = 3e-4
CRITIC_RATE = 2e-4
CRITIC_WEIGHT = 0.02
KL_WEIGHT = 1e-5
#: How far off the decoder hears the codes, in their spread; the log variance that the posterior starts with.
CODE_NOISE, LOG_VARIANCE, SPREAD_WEIGHT = 0.05, -6.0, 0.01


def build_autoencoder(channels: tuple[int, ...] = CHANNELS) -> AutoencoderKL:
    """An untrained autoencoder: halved between levels, no attention, no quantizing convolutions."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=256,
    )


def deepen(shallow: AutoencoderKL) -> AutoencoderKL:
    """An autoencoder with one more level than `shallow`, and its weights in the outer levels."""
    channels = tuple(shallow.config["block_out_channels"])
    deep = build_autoencoder((*channels, channels[-1]))
    encoder, decoder = deep.encoder, deep.decoder
    encoder.conv_in.load_state_dict(shallow.encoder.conv_in.state_dict())
    for mine, theirs in zip(encoder.down_blocks, shallow.encoder.down_blocks, strict=False):
        mine.load_state_dict(theirs.state_dict(), strict=False)  # the last has no convolution that halves
    for mine, theirs in zip(decoder.up_blocks[1:], shallow.decoder.up_blocks, strict=True):
        mine.load_state_dict(theirs.state_dict())
    decoder.conv_norm_out.load_state_dict(shallow.decoder.conv_norm_out.state_dict())
    decoder.conv_out.load_state_dict(shallow.decoder.conv_out.state_dict())
    return deep


class InnerLevels(nn.Module):
    """What `deepen` adds: from the shallow encoder's last features to latents, and to its decoder's first features."""

    def __init__(self, deep: AutoencoderKL) -> None:
        super().__init__()
        encoder, decoder = deep.encoder, deep.decoder
        self.halve = encoder.down_blocks[-2].downsamplers
        self.down, self.encoder_mid = encoder.down_blocks[-1], encoder.mid_block
        self.norm, self.to_latent = encoder.conv_norm_out, encoder.conv_out
        self.from_latent, self.decoder_mid, self.up = decoder.conv_in, decoder.mid_block, decoder.up_blocks[0]

    def encode(self, features: Tensor) -> Tensor:
        """Features `[B, C, h, w]` to mean and log variance `[B, 32, h/2, w/2]`."""
        for layer in self.halve:
            features = layer(features)
        moments: Tensor = self.to_latent(functional.silu(self.norm(self.encoder_mid(self.down(features)))))
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[B, 16, h/2, w/2]` to features `[B, C, h, w]`."""
        features: Tensor = self.up(self.decoder_mid(self.from_latent(latents)))
        return features


@dataclass(frozen=True)
class OuterFeatures:
    """What the new levels learn from, in half precision on the CPU: the shallow encoder's features before its middle
    and its decoder's after its middle `[N, C, h, w]`, and the codes that stand between them `[N, 16, h/2, w/2]`.
    """

    read: Tensor
    wanted: Tensor
    codes: Tensor


@torch.no_grad()
def outer_features(shallow: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The shallow encoder's features before its middle, its decoder's after its middle, and its latents, for pictures
    in -1..1.
    """
    features = shallow.encoder.conv_in(pictures)
    for block in shallow.encoder.down_blocks:
        features = block(features)
    encoder, decoder = shallow.encoder, shallow.decoder
    moments = encoder.conv_out(functional.silu(encoder.conv_norm_out(encoder.mid_block(features))))
    mean = moments[:, : moments.shape[1] // 2]
    return features, decoder.mid_block(decoder.conv_in(mean)), mean


def find_codes(latents: Tensor) -> Tensor:
    """The principal components of each two by two latents `[N, 16, h, w]`, as many as a latent has channels.

    They are turned at random, so that no channel holds more than another; distances stay as they are.
    """
    patches = functional.pixel_unshuffle(latents, 2)
    flat = patches.movedim(1, -1).flatten(0, -2)
    flat = flat - flat.mean(0)
    channels = latents.shape[1]
    components = torch.linalg.eigh(flat.T @ flat / len(flat)).eigenvectors[:, -channels:]
    turn = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(0))).Q
    return torch.einsum("nchw,cd->ndhw", patches, components @ turn)


class InnerLearner:
    """Trains the new levels: features to codes, and codes, as they are read, to features."""

    name = "autoencoder, inner levels"

    def __init__(self, deep: AutoencoderKL, features: OuterFeatures, device: torch.device) -> None:
        self.inner = InnerLevels(deep.to(device)).train()
        self.features, self.device, self.rng, self.done, self.batch = features, device, Random(0), 0, 16
        self.spread = channel_spread(features.wanted, device)
        self.code_spread = channel_spread(features.codes, device).square().mean().sqrt()
        groups = [{"params": list(self.inner.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the share of the features' and of the codes' variance that is missed."""
        chosen = [self.rng.randrange(len(self.features.read)) for _ in range(self.batch)]
        parts = (self.features.read, self.features.wanted, self.features.codes)
        read, wanted, codes = (part[chosen].float().to(self.device) for part in parts)
        with mixed_precision(self.device, convolutions=True):
            mean, spread = self.inner.encode(read).chunk(2, 1)
            made = self.inner.decode(mean + CODE_NOISE * self.code_spread * torch.randn_like(mean))
        missed = ((mean.float() - codes) / self.code_spread).square().mean()
        loss = ((made.float() - wanted) / self.spread).square().mean() + missed
        loss = loss + SPREAD_WEIGHT * (spread.float() - LOG_VARIANCE).square().mean()
        optimizer_step(self.optimizer, loss, self.inner, rate_factor(progress, self.done, 100, 0.4, 0.03))
        self.done += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {"inner": self.inner.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.inner.load_state_dict(state["inner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.rng = Random(self.done)


def channel_spread(features: Tensor, device: torch.device) -> Tensor:
    """The standard deviation of each channel `[1, C, 1, 1]`, over some of the features."""
    some = features[:: max(1, len(features) // 64)].float()
    return some.std((0, 2, 3), keepdim=True).clamp_min(1e-3).to(device)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Of the posterior from the unit normal, per latent."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class WholeLearner:
    """Trains all levels on pictures `[N, 3, S, S]` (bytes): L1, gradients, and after half the time a critic."""

    name = "autoencoder"

    def __init__(self, deep: AutoencoderKL, pictures: Tensor, device: torch.device, batch: int = 16) -> None:
        self.vae, self.critic = deep.to(device).train(), Critic().to(device).train()
        self.pictures, self.device, self.batch, self.done, self.rng = pictures, device, batch, 0, Random(0)
        groups = [{"params": list(self.vae.parameters()), "base": FINISHING_RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=FINISHING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
        critics = [{"params": list(self.critic.parameters()), "base": CRITIC_RATE}]
        self.critic_optimizer = torch.optim.AdamW(critics, lr=CRITIC_RATE, betas=(0.5, 0.9))

    def update(self, progress: float) -> Tensor:
        """One optimizer step of the autoencoder, and of the critic once it takes part; the former's loss."""
        chosen = [self.rng.randrange(len(self.pictures)) for _ in range(self.batch)]
        wanted = self.pictures[chosen].to(self.device).float() / 127.5 - 1
        with mixed_precision(self.device, convolutions=True):
            posterior = self.vae.encode(wanted).latent_dist
            made = self.vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.std)).sample.float()
        loss = picture_loss(made, wanted) + KL_WEIGHT * kl_divergence(posterior.mean, posterior.logvar)
        judged = progress > 0.5
        if judged:
            loss = loss + CRITIC_WEIGHT * criticism(self.critic, made, wanted)
        factor = rate_factor(progress, self.done, 100, 0.4, 0.03)
        optimizer_step(self.optimizer, loss, self.vae, factor)
        if judged:
            optimizer_step(self.critic_optimizer, critic_loss(self.critic, made, wanted), self.critic, 1.0)
        self.done += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Weights, optimizers and count of updates."""
        parts = ("vae", "critic", "optimizer", "critic_optimizer")
        return {part: getattr(self, part).state_dict() for part in parts} | {"done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        for part in ("vae", "critic", "optimizer", "critic_optimizer"):
            getattr(self, part).load_state_dict(state[part])
        self.done = state["done"]
        self.rng = Random(self.done)
