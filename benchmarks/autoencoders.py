"""KL against VQ at f = 4, 8 and 16: short runs of the autoencoder's trainer (compare Latent Diffusion, Table 8)."""

from __future__ import annotations

import tempfile
from typing import Any, Literal

import torch

from ..core import metrics
from ..core.protocols import Progress, no_progress
from ..demo import architecture, data, measure
from ..training import autoencoder

SIZE = 64  # pixels: a short run on whole scenes, drawn smaller
Regulariser = Literal["kl", "vq"]
KINDS: tuple[Regulariser, ...] = ("kl", "vq")
FACTORS = (4, 8, 16)


def run(progress: Progress = no_progress, *, steps: int = 600, pictures: int = 256) -> dict[str, Any]:
    """`psnr_kl_f4` and so on: reconstruction of held-out pictures after `steps` of batch 8 from the same seed.

    A codebook's figures come with the number of its entries that the held-out pictures used.
    """
    held_out = data.pictures(measure.HELD_OUT, 0.0, SIZE)(0, pictures)
    figures: dict[str, Any] = {"steps": steps, "pictures": pictures}
    runs: list[tuple[Regulariser, int]] = [(kind, factor) for kind in KINDS for factor in FACTORS]
    for done, (kind, factor) in enumerate(runs):

        def shown(step: int, total: int, preview: Any = None, done: int = done) -> None:
            progress(done * steps + step, len(runs) * steps, preview)

        vae = _trained(kind, factor, steps, shown)
        figures |= {f"{name}_{kind}_f{factor}": value for name, value in _measured(vae, held_out).items()}
    return figures


def _trained(kind: Regulariser, factor: int, steps: int, progress: Progress) -> Any:
    from ..hosts.diffusers import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae: Any = build.new_autoencoder(architecture.autoencoder(factor, kind))
    settings = autoencoder.AutoencoderSettings(
        steps=steps, batch=8, rate=1.5e-3, warmup=50, ema=0.99, precision="bf16", chroma=1.0, thumbnail=2.0
    )
    with tempfile.TemporaryDirectory() as folder:
        images = data.pictures(1, 0.0, SIZE)
        return autoencoder.train(vae, images, settings, folder, progress=progress).modules["vae"].eval()


@torch.no_grad()
def _measured(vae: Any, pictures: torch.Tensor) -> dict[str, float]:
    outputs, used = [], set()
    for part in pictures.split(32):
        z = autoencoder.encode_mean(vae, part)
        if hasattr(vae, "quantize"):
            z, _, (_, _, entries) = vae.quantize(z)
            used |= set(entries.flatten().tolist())
        outputs.append(vae.decoder(vae.post_quant_conv(z)).clamp(-1, 1))
    a, b = (torch.cat(outputs) + 1) / 2, (pictures + 1) / 2
    figures = {"psnr": float(metrics.psnr(a, b).mean()), "ssim": float(metrics.ssim(a, b).mean())}
    return {**figures, "entries_used": float(len(used))} if used else figures
