"""What the engine asks of a host.

Conventions, everywhere in `core`:

- Latents are variance preserving, `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`, in the latent's own scaling
  (the autoencoder's output times its scaling factor). A host whose samplers work otherwise converts in its adapter.
- `t` is a training timestep, 0 .. T-1, as a long or float tensor of shape [B].
- Images are [B, 3, H, W] in -1 .. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .lora import LowRankDeltas
from .schedule import NoiseSchedule

Progress = Callable[[int, int, Any], None]
"""`progress(step, total, preview)`. `preview` is None or an image [3, H, W] in 0 .. 1. It may raise the host's
interruption, which the engine lets through."""


def no_progress(step: int, total: int, preview: Any = None) -> None:
    """The Progress that shows nothing."""


@dataclass(frozen=True)
class Condition:
    """What a prompt becomes: `embedding` [B, L, D], optional `pooled` [B, P], and the host's extras, passed through."""

    embedding: Tensor
    pooled: Tensor | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def with_embedding(self, embedding: Tensor) -> Condition:
        """The same condition with another embedding: how a null text is optimised."""
        return replace(self, embedding=embedding)


class Site(NamedTuple):
    """One attention of the network, by host-neutral name.

    `place` is "down.L.I", "mid" or "up.L.I" (level, then layer in the level, both counted as diffusers counts them);
    `depth` counts the transformer blocks at that place.
    """

    place: str
    depth: int
    kind: Literal["self", "cross"]


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The host's own attention: q [B, N, C], k [B, M, C], v [B, M, C] -> [B, N, C], before the output projection. Heads are
split inside."""

AttentionRule = Callable[[Site, Tensor, Tensor, Tensor, Attend], Tensor]
"""`rule(site, q, k, v, attend)` stands in for `attend(q, k, v)`; it may change any of them, across the batch too."""


@runtime_checkable
class LatentModel(Protocol):
    """A text-conditional noise predictor."""

    schedule: NoiseSchedule
    latent_channels: int
    device: torch.device
    dtype: torch.dtype

    def predict_noise(
        self, x: Tensor, t: Tensor, condition: Condition, *, guidance_embedding: Tensor | None = None
    ) -> Tensor:
        """eps_theta(x_t, t, c) for x [B, C, h, w], t [B]: [B, C, h, w] in x's dtype, whatever the network was trained
        to predict. One network call for the whole batch. `guidance_embedding` [B] is the guidance scale omega of a
        guidance-distilled network; ValueError if the network has no such input."""
        ...

    def scale(self, raw: Tensor) -> Tensor:
        """The autoencoder's own latents, as a LATENT wire carries them -> scaled ones, which the engine works in."""
        ...

    def unscale(self, latent: Tensor) -> Tensor:
        """The inverse of `scale`."""
        ...

    def places(self) -> tuple[str, ...]:
        """The names that `taps` takes, in the order the network runs them."""
        ...

    def sites(self) -> tuple[Site, ...]:
        """The attentions that a rule will meet, in the order the network runs them."""
        ...

    def taps(self, *places: str) -> AbstractContextManager[dict[str, Tensor]]:
        """While open, each `predict_noise` leaves the features of these places in the dict, [B, C, h', w'], attached to
        the graph where there is one. "down.L.I", "mid", "up.L.I" are the outputs of a layer (its attention included);
        "down.L" and "up.L" those of a whole level, after its down- or upsampler. ValueError names an unknown place."""
        ...

    def attention(self, rule: AttentionRule) -> AbstractContextManager[None]:
        """While open, every attention of this model object goes through `rule`."""
        ...

    def differentiable(self, *, low_memory: bool = False) -> AbstractContextManager[None]:
        """While open, `predict_noise` may be differentiated with respect to x and the condition. Outside, no gradient
        is promised. The network's own parameters never require one.

        `low_memory` keeps the inputs of the network's units (residual and transformer blocks) in place of all that
        they compute, and computes them again when gradients are taken: the same gradients, first and second ones, in
        more time. They are computed by the layers' hooks and the attention rule of the call."""
        ...

    def layers(self) -> dict[str, nn.Module]:
        """The network's linear layers and convolutions, which a LoRA may change, by diffusers' module name with dots as
        underscores ("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"): the name in a kohya file after
        `lora_unet_`. For trainers, which hook onto them while `differentiable` is open."""
        ...

    def with_lora(self, deltas: LowRankDeltas, strength: float = 1.0) -> LatentModel:
        """A new model with the deltas added; this one is unchanged. ValueError if nothing of them fits the network."""
        ...


@runtime_checkable
class LatentCodec(Protocol):
    """An autoencoder: pixels to scaled latents and back."""

    latent_channels: int
    factor: int

    def scale(self, raw: Tensor) -> Tensor:
        """The autoencoder's own latents -> scaled ones, which the engine works in."""
        ...

    def unscale(self, latent: Tensor) -> Tensor:
        """The inverse of `scale`."""
        ...

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in -1 .. 1, sides multiples of `factor` -> mean latent [B, C, H/factor, W/factor]."""
        ...

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image as for `encode` -> mean and standard deviation [B, C, h, w] of the latent, in the autoencoder's own
        units, unscaled. ValueError for an autoencoder that has no deviation."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent [B, C, h, w] -> image [B, 3, h*factor, w*factor], clamped to -1 .. 1."""
        ...

    def differentiable(self) -> AbstractContextManager[None]:
        """While open, `decode` may be differentiated with respect to the latent, at once and without tiles. The
        autoencoder's own parameters never require a gradient."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to conditions."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """One row of the condition for each prompt, padded to one length."""
        ...
