"""The picture of a latent under the norms of another is the picture of it where those are its own, whatever the spike
that it lacks."""

import pytest
import torch
from torch import nn

from velatura.hosts.diffusers import build
from velatura.training.droplets import decode_like

CONFIG = {
    "block_out_channels": [8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}


@pytest.fixture
def vae():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build.new_autoencoder(CONFIG).double()


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_latents_are_decoded_as_ever_under_their_own_norms(vae):
    z = latents(1)
    assert torch.allclose(decode_like(vae, z, z), vae.decode(z).sample.float(), atol=1e-5)


def test_a_norm_takes_the_mean_and_the_variance_of_the_others(vae):
    """Worked out at the last norm alone, with the stages before it taken away."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.up_blocks = nn.ModuleList()
            self.conv_norm_out = nn.GroupNorm(2, 4).double()

        def forward(self, z):
            return self.conv_norm_out(z)

    vae.decoder = Decoder()
    vae.post_quant_conv = nn.Identity()
    z, other = latents(1), latents(2)
    groups = other.reshape(2, 2, -1)
    mean, deviation = groups.mean(-1), (groups.var(-1, correction=0) + 1e-5).sqrt()
    expected = torch.stack(
        [torch.stack([(z[b, c] - mean[b, c // 2]) / deviation[b, c // 2] for c in range(4)]) for b in range(2)]
    )
    assert torch.allclose(decode_like(vae, z, other), expected.float(), atol=1e-5)


def test_nothing_stays_on_the_decoder_even_after_an_error(vae):
    with pytest.raises(RuntimeError):
        decode_like(vae, latents(1)[:, :3], latents(2)[:, :3])
    assert not any(part._forward_hooks for part in vae.modules())
