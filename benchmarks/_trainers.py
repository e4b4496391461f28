"""Every trainer, small: one run of each in this process, whatever part of a batch it has.

`python -m torch.distributed.run ... -m velatura.benchmarks._trainers FOLDER BATCH [NAME ...]` runs them in several
processes, and writes what each ended with.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.enlarge import given_of
from ..core.protocols import Condition
from ..core.schedule import NoiseSchedule
from ..core.spatial import class_cells
from ..core.transparency import TransparencyDecoder, TransparencyEncoder
from ..training import autoencoder, concat, consistency, diffusion, identity, layers, smooth, supervised, transparency
from ..training.adapters import LowRankLayers
from ..training.checkpoint import read_tensors, write_tensors
from ..training.loop import CHECKPOINT, Settings, Trained
from ..training.share import Draw, this_process
from ..training.students import GuidanceInput, Student

STEPS, SAVE_EVERY = 21, 6
SCHEDULE = NoiseSchedule.scaled_linear()
UNET: dict[str, Any] = {
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
TEXT: dict[str, Any] = {
    "vocab_size": 9, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 4, "eos_token_id": 8, "bos_token_id": 7,
}  # fmt: skip
NULL = Condition(torch.zeros(1, 3, 16))
Run = Callable[[Path, int, dict[str, Any]], Trained]
"""`run(folder, batch, options)`: `batch` examples on every process; the options are `progress` and `resume`."""


def noise(*shape: int, seed: int) -> Tensor:
    """Numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(first: int, count: int, *shape: int, kind: int = 0) -> Tensor:
    """An example for each number, the same in whatever batch."""
    return torch.stack([noise(*shape, seed=2 * n + kind) for n in range(first, first + count)])


def fields(batch: int, **more: Any) -> dict[str, Any]:
    """Settings that all share."""
    return {"steps": STEPS, "batch": batch, "rate": 1e-3, "warmup": 2, "save_every": SAVE_EVERY, **more}


def seeded(make: Callable[[], Any]) -> Any:
    """A network with the same random weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def new_model() -> Any:
    """A small network as a LatentModel."""
    from ..hosts import load
    from ..hosts.diffusers import build
    from ..hosts.diffusers.model import DiffusersModel

    load("diffusers")
    return seeded(lambda: DiffusersModel(build.new_unet(UNET), SCHEDULE))


def new_lora(model: Any, seed: int = 0) -> LowRankLayers:
    """A LoRA whose both factors count from the first step."""
    lora = LowRankLayers(model.layers(), 2, which="attention", seed=seed)
    with torch.no_grad():
        for k, up in enumerate(lora.up.values()):
            up.copy_(noise(*up.shape, seed=100 * seed + k) / 10)
    return lora


def prompted(first: int, count: int) -> tuple[Tensor, Condition]:
    """Latents and their conditions."""
    return rows(first, count, 4, 4, 4), Condition(rows(first, count, 3, 16, kind=1))


def run_autoencoder(regulariser: str) -> Run:
    def run(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
        from ..hosts.diffusers import build

        vae = seeded(lambda: build.new_autoencoder(VAE | ({"num_vq_embeddings": 8} if regulariser == "vq" else {})))
        settings = autoencoder.AutoencoderSettings(
            **fields(batch, adversarial=0.1, adversarial_from=8, thumbnail=0.1, similarity=0.1)
        )
        return autoencoder.train(vae, lambda *at: rows(*at, 3, 16, 16).tanh(), settings, folder, **options)

    return run


def run_drawn(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
    from ..hosts.diffusers import build

    def drawn(first: int, count: int) -> tuple[Tensor, Tensor]:
        return rows(first, count, 4, 8, 8, kind=1), rows(first, count, 3, 16, 16, kind=1).tanh()

    vae = seeded(lambda: build.new_autoencoder(VAE))
    settings = autoencoder.AutoencoderSettings(**fields(batch, decoder_only=True, drawn=batch))
    pictures = lambda *at: rows(*at, 3, 16, 16).tanh()  # noqa: E731
    return autoencoder.train(vae, pictures, settings, folder, drawn=drawn, **options)


def run_diffusion(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
    from ..hosts.diffusers import build

    unet, text = seeded(lambda: (build.new_unet(UNET), build.new_text_encoder(TEXT)))

    def examples(first: int, count: int) -> tuple[Tensor, Tensor]:
        return rows(first, count, 4, 8, 8), (rows(first, count, 4, kind=1).abs() * 3).long().clamp(max=6)

    settings = diffusion.DiffusionSettings(**fields(batch, min_snr=5.0, prompt_dropout=0.3))
    return diffusion.train(unet, text, examples, torch.full((4,), 8), SCHEDULE, settings, folder, **options)


def run_supervised(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
    def loss(model: nn.Module, first: int, count: int, draw: Draw) -> Tensor:
        x = rows(first, count, 3) + 0.1 * draw(lambda n, generator: torch.randn(n, 3, generator=generator))
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    network = seeded(lambda: nn.Linear(3, 1))
    return supervised.train(network, loss, Settings(**fields(batch)), folder, **options)


def run_consistency(method: str) -> Run:
    def run(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
        model = new_model()
        student = Student(lora=new_lora(model), guidance=GuidanceInput(model.layers()))
        settings = consistency.ConsistencySettings(**fields(batch, method=method, weighting="snr"))
        return consistency.train(model, student, prompted, NULL, settings, folder, **options)

    return run


def run_smooth(plain: float = 0, **more: Any) -> Run:
    """`plain` rows for each of the batch."""

    def run(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
        model = new_model()
        settings = smooth.SmoothSettings(
            **fields(batch, accumulate=2, prompt_dropout=0.3, memory=0.1, plain=round(plain * batch), **more)
        )
        return smooth.train(model, Student(lora=new_lora(model)), prompted, NULL, settings, folder, **options)

    return run


def run_transparency(**more: Any) -> Run:
    def run(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
        widths = (8, 8, 8, 8)
        encoder, decoder = seeded(
            lambda: (TransparencyEncoder(widths), TransparencyDecoder(widths, layers=1, attention_from=4))
        )
        frozen = transparency.Frozen(
            lambda image: (F.avg_pool2d(image, 8)[:, [0, 1, 2, 0]], torch.full((len(image), 4, 2, 2), 0.1)),
            lambda latent: F.interpolate(latent[:, :3], scale_factor=8.0),
        )

        def pictures(first: int, count: int) -> tuple[Tensor, Tensor]:
            return rows(first, count, 3, 16, 16).sigmoid(), rows(first, count, 1, 16, 16, kind=1).sigmoid()

        # At ten times this rate its judge makes 0.008 of float32's rounding in 20 steps; in float64 they agree to 1e-8.
        settings = transparency.TransparencySettings(**fields(batch, adversarial_from=8, rate=1e-4, **more))
        return transparency.train(encoder, decoder, frozen, pictures, settings, folder, **options)

    return run


def run_layers(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
    model = new_model()
    loras = layers.LayerLoras([new_lora(model, seed) for seed in (0, 1)])

    def examples(first: int, count: int) -> tuple[Tensor, Condition]:
        latents, condition = prompted(2 * first, 2 * count)
        return latents, condition

    settings = layers.LayerSettings(**fields(batch, conditional=0.5, prompt_dropout=0.3))
    return layers.train(model, loras, examples, NULL, settings, folder, **options)


def run_concat(given: Callable[[int, int], Tensor], **more: Any) -> Run:
    """`given(first, count)` is what is told."""

    def run(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
        model = new_model()
        told = concat.ToldLayers(model.layers(), given(0, 1).shape[1], 2)
        settings = concat.ConcatSettings(**fields(batch, prompt_dropout=0.3, **more))
        examples = lambda *at: (*prompted(*at), given(*at))  # noqa: E731
        return concat.train(model, told, examples, NULL, settings, folder, **options)

    return run


def told_classes(first: int, count: int) -> Tensor:
    """Maps of two classes."""
    return class_cells((rows(first, count, 32, 32, kind=1) > 0).long(), 2, 8)


def told_small(first: int, count: int) -> Tensor:
    """Small pictures, and their latents."""
    return given_of(rows(first, count, 3, 8, 8, kind=1).sigmoid(), rows(first, count, 4, 4, 4))


def run_identity(folder: Path, batch: int, options: dict[str, Any]) -> Trained:
    """Learns one picture, in half a minute: every process the same, with nothing to resume."""
    latents, condition = prompted(0, 1)
    lora = identity.learn_identity(new_model(), latents, condition, identity.IdentitySettings(steps=6, rank=2))
    network = nn.ParameterDict({name: low.up for name, low in lora.of("unet").items()})
    return Trained({"lora": network}, {}, 6)


TRAINERS: dict[str, Run] = {
    "autoencoder_kl": run_autoencoder("kl"),
    "autoencoder_vq": run_autoencoder("vq"),
    "autoencoder_drawn": run_drawn,
    "diffusion": run_diffusion,
    "supervised": run_supervised,
    "distill": run_consistency("distill"),
    "finetune": run_consistency("finetune"),
    "smooth": run_smooth(),
    "smooth_guarded": run_smooth(one_sided=True, min_snr=5.0, guard=1.0),
    "smooth_sampled": run_smooth(
        0.5, guidance=3.0, sampled=2, lowest=0.2, highest=0.8, one_sided=True, min_snr=5.0, guard=1.0
    ),
    "smooth_steep": run_smooth(
        0.5, guidance=3.0, sampled=2, coarse=2, power=1, ceiling=0.2, distilled=True, hold=1.0, guard=1.0
    ),
    "transparency": run_transparency(),
    "transparency_turned": run_transparency(turned=True, keep_encoder=True, shake=0.3),
    "layers": run_layers,
    "concat_semantic": run_concat(told_classes, given_dropout=0.3),
    "concat_superres": run_concat(told_small, min_snr=5.0, strength=0.3),
    "identity": run_identity,
}


def main(folder: Path, batch: int, names: Sequence[str], killed: int = 0) -> None:
    """Run these trainers in this process, resuming what has a checkpoint. What each ended with goes to
    NAME.RANK.safetensors. The last process kills itself after step `killed`, if that is not 0."""
    torch.set_num_threads(1)
    rank, of, _ = this_process()

    def progress(done: int, total: int, preview: Any = None) -> None:
        if done == killed and rank == of - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in names or TRAINERS:
        home = folder / name
        options = {"progress": progress, "resume": (home / CHECKPOINT).exists()}
        done = TRAINERS[name](home, batch, options)
        tensors = {f"{kind}.{key}": v for kind, net in done.modules.items() for key, v in net.state_dict().items()}
        write_tensors(folder / f"{name}.{rank}.safetensors", tensors, {"history": done.history})


def processes(
    count: int, folder: Path, batch: int, names: Sequence[str] = (), *, killed: int = 0
) -> tuple[int, dict[str, list[tuple[dict[str, Tensor], dict[str, list[float]]]]]]:
    """`main` in so many processes: the exit status, and by name what each process ended with, weights and losses."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command += ["-m", __name__, str(folder), str(batch), str(killed), *names]
    # On a machine with a GPU, too: two processes have one each, and not the same one.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment) as launched:
        try:
            status = launched.wait(580)
        finally:
            launched.terminate()  # it ends the processes that it started, which a kill would leave behind
    found = {}
    for name in names or TRAINERS:
        files = [folder / f"{name}.{rank}.safetensors" for rank in range(count)]
        if all(each.exists() for each in files):
            read = [read_tensors(each) for each in files]
            found[name] = [(tensors, note["history"]) for tensors, note in read]
    return status, found


def loss_difference(one: dict[str, list[float]], two: dict[str, list[float]]) -> float:
    """The largest difference of two runs' losses, of those above one in units of them."""
    pairs = [pair for name in one for pair in zip(one[name], two[name], strict=True)]
    return max((abs(a - b) / max(1.0, abs(a)) for a, b in pairs if a == a), default=0.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4:], int(sys.argv[3]))
