"""What is under a handle, dragged to its target; and a LoRA that keeps a picture itself meanwhile."""

from __future__ import annotations

import base64
import hashlib
import io as streams
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import dragging
from ..core.consistency import lcm_timesteps
from ..core.drag import Kept, Settings
from ..core.inversion import Inversion, check_same_model
from ..core.points import Points
from ..core.protocols import LatentCodec, LatentModel
from ..hosts import host
from ..training.identity import IdentitySettings, learn_identity
from ._api import io, schema
from ._plot import curves
from ._rgba import image_of
from .drag_editor import PointsType
from .inversion import InversionType, preview_of

QUALITY, FAST = "quality", "fast"
PAUSE = 0.25  # seconds between two live pictures
PREVIEW_SIDE = 384


_UNFINISHED: dict[str, Kept] = {}
"""The best of a drag that was cancelled, by what it was made of: the same one goes on from there."""


class VelaturaDrag(io.ComfyNode):
    """The drag itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaDrag",
            display_name="Drag (Velatura)",
            category="Velatura/drag",
            description="Brings what is at each handle to its target. “quality” optimises the noisy latent and samples "
            "with an eye on the original; “fast” cuts out what is painted, moves it, and has a few-step model paint "
            "what it uncovers.",
            search_aliases=["drag diffusion", "draggan", "point drag", "move object", "warp", "liquify"],
            inputs=[
                io.Model.Input("model", tooltip="For “quality” a Stable Diffusion 1, 2 or XL model, for “fast” one "
                               "that Apply LCM made."),
                io.Conditioning.Input("positive", tooltip="What the picture shows; for “fast”, what lies behind."),
                io.Vae.Input("vae", tooltip="The model's own."),
                PointsType.Input("points", tooltip="Handles and targets, from the Drag Editor."),
                io.Combo.Input("mode", options=[QUALITY, FAST], default=QUALITY, tooltip="Careful, or in a second."),
                io.Int.Input("steps", default=20, min=2, max=1000, tooltip="quality: DDIM steps, to noise and back."),
                io.Float.Input("strength", default=0.7, min=0.05, max=1.0, step=0.01, tooltip="quality: how far "
                               "towards noise the optimised latent is. More changes more, and keeps less."),
                io.Int.Input("iterations", default=10, min=0, max=1000, tooltip="quality: optimisation steps at most; "
                             "it stops once all handles have arrived. 80 is usual without “cut_out”."),
                io.Float.Input("rate", default=0.02, min=0.0001, max=1.0, step=0.001, round=0.0001,
                               tooltip="quality: the optimiser's step size."),
                io.Boolean.Input("cut_out", default=True, tooltip="quality: start from what is painted, moved as it "
                                 "is. Off: start from the picture, and pull all the way."),
                io.Boolean.Input("snap", default=True, tooltip="Keep of the mask what differs from its surroundings, "
                                 "so that it may be painted broadly."),
                io.Int.Input("fill_steps", default=2, min=1, max=50, tooltip="fast: model evaluations."),
                io.Float.Input("fill_strength", default=0.46, min=0.05, max=1.0, step=0.01, tooltip="fast: how freely "
                               "the uncovered place is painted. Less is closer to a smooth fill."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                             tooltip="fast: the noise of the fill."),
                io.Boolean.Input("low_memory", default=False, tooltip="quality: compute parts of the network twice "
                                 "instead of keeping them: less memory, more time, the same picture."),
                io.Mask.Input("mask", optional=True, tooltip="What may move: 1 may. Not connected: everything, and "
                              "“cut_out” is off then."),
                io.Image.Input("image", optional=True, tooltip="The picture. Or connect an inversion."),
                InversionType.Input("inversion", optional=True, tooltip="quality: the picture's inversion, in place of "
                                    "making one; made with this very model, with guidance 1 in mind."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The edit; outside of what may change, the original."),
                io.Latent.Output(display_name="latent", tooltip="Its latent."),
                io.Image.Output(display_name="plot", tooltip="How far each handle had to go, step by step."),
                io.String.Output(display_name="track", tooltip="Where each handle was at each step, as JSON."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, positive: Any, vae: Any, points: Points, mode: str, steps: int, strength: float,
        iterations: int, rate: float, cut_out: bool, snap: bool, fill_steps: int, fill_strength: float, seed: int,
        low_memory: bool, mask: Tensor | None = None, image: Tensor | None = None, inversion: Inversion | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        engine, codec = host().engine(model), host().codec(vae, model)
        tasks = _tasks(engine, codec, points, mask, image, inversion, mode)
        condition = host().condition(positive) if inversion is None else inversion.condition
        live = Live(points, len(tasks), preview_of(vae, model), codec)
        made: list[dragging.Edited] = []
        for number, task in enumerate(tasks):
            live.picture(number)
            if mode == FAST:
                count = len(engine.schedule)
                timesteps = lcm_timesteps(fill_steps, strength=fill_strength, count=count)
                done = dragging.quick(
                    engine, codec, task, condition, _noise(seed + number), timesteps=timesteps, snap=snap,
                    progress=live.bar, preview=live.decoded,
                )  # fmt: skip
            else:
                key = _key(model, task, condition.embedding, steps, strength, cut_out, snap)
                done = dragging.careful(
                    engine,
                    codec,
                    task,
                    condition,
                    Settings(steps=iterations, rate=rate),
                    steps=steps,
                    strength=strength,
                    moved_start=cut_out,
                    snap=snap,
                    low_memory=low_memory,
                    pivots=_pivots(inversion, number),
                    timesteps=None if inversion is None else inversion.timesteps,
                    progress=live.bar,
                    preview=live.decoded,
                    watch=live.watch,
                    better=partial(_UNFINISHED.__setitem__, key),
                    begin=_UNFINISHED.get(key),
                )
                _UNFINISHED.clear()
            made.append(done)
        ways = [each.track for each in made]
        misses = [(way - points.targets).norm(dim=-1).T.tolist() for way in ways]
        names = [f"handle {k + 1}" for k in range(len(points.handles))]
        plot = curves(misses[0], names, "distance to the target", "step", "pixels")
        track = json.dumps([[[[round(v, 2) for v in at] for at in step] for step in way.tolist()] for way in ways])
        pixels = torch.cat([each.image for each in made])
        latent = {"samples": engine.unscale(torch.cat([each.latent for each in made])).cpu()}
        return io.NodeOutput(image_of(pixels), latent, plot, track, ui=live.shown(made[0]))


def _tasks(
    engine: LatentModel, codec: LatentCodec, points: Points, mask: Tensor | None, image: Tensor | None,
    inversion: Inversion | None, mode: str,
) -> list[dragging.Task]:  # fmt: skip
    """One for each picture. ValueError names the input that does not fit."""
    if (image is None) == (inversion is None):
        raise ValueError("image: connect either image or inversion, and not both")
    if inversion is not None:
        if mode == FAST:
            raise ValueError("inversion: “fast” makes none and takes an image; or choose “quality”")
        with torch.no_grad():
            check_same_model(engine, inversion)
            pixels = (codec.decode(inversion.x_0.to(engine.device)) + 1) / 2
    else:
        pixels = torch.as_tensor(image)[..., :3].movedim(-1, 1).float()
    pixels = pixels.clamp(0, 1).cpu()
    height, width = pixels.shape[2:]
    if (points.height, points.width) != (height, width):
        raise ValueError(
            f"points: they are for a picture of {points.width}x{points.height}, the image is {width}x{height}; draw "
            "them on this picture"
        )
    allowed = torch.ones(1, height, width) if mask is None else mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    if allowed.shape[1:] != (height, width):
        raise ValueError(f"mask: expected the image's size {width}x{height}, got {allowed.shape[2]}x{allowed.shape[1]}")
    if len(allowed) not in (1, len(pixels)):
        raise ValueError(f"mask: expected {len(pixels)}, as many as pictures, or 1, got {len(allowed)}")
    allowed = (allowed > 0.5).float()[:, None].expand(len(pixels), -1, -1, -1)
    ends = points.handles.double(), points.targets.double()
    return [dragging.Task(*pair, *ends) for pair in zip(pixels.split(1), allowed.split(1), strict=True)]


def _key(model: Any, task: dragging.Task, embedding: Tensor, *settings: Any) -> str:
    """What an unfinished drag depends on. Another drag forgets it."""
    digest = hashlib.sha256(repr((id(model), settings)).encode())
    for tensor in (task.image, task.mask, task.handles, task.targets, embedding):
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    key = digest.hexdigest()
    for other in [other for other in _UNFINISHED if other != key]:
        del _UNFINISHED[other]
    return key


def _pivots(inversion: Inversion | None, number: int) -> Tensor | None:
    if inversion is None:
        return None
    if inversion.pivots is None:
        raise ValueError("inversion: its method keeps no path to start from; invert with any but “exact”")
    return inversion.pivots[:, number : number + 1]


def _noise(seed: int) -> Callable[[Tensor], Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(seed % 2**64)
    return lambda like: lambda: torch.randn(like.shape, generator=generator).to(like)


class Live:
    """What the browser is told while a drag goes on: pictures, and the handles on their way."""

    def __init__(self, points: Points, count: int, decode: Any, codec: LatentCodec) -> None:
        self.points, self.count, self.decode, self.codec = points, count, decode, codec
        self.progress, self.number, self.told = host().progress(count), 0, -1e9

    def picture(self, number: int) -> None:
        self.number = number

    def bar(self, step: int, total: int, shown: Any) -> None:
        self.progress(self.number * total + step, self.count * total, shown)

    def decoded(self, latent: Tensor) -> Tensor:
        """The edited one of the latents that are sampled together."""
        return self.decode(latent[-1:])

    def watch(self, step: int, latent: Tensor, handles: Tensor) -> None:
        """A step of the optimisation. Pictures are decoded now and then only: one may take as long as a step."""
        if time.monotonic() - self.told < PAUSE:
            return
        message = self._message(handles, step + 1)
        message["image"] = _data_url(self.decode(latent))
        host().tell("drag", message)
        self.told = time.monotonic()

    def _message(self, handles: Tensor, step: int) -> dict[str, Any]:
        return {
            "handles": handles.tolist(),
            "targets": self.points.targets.tolist(),
            "size": [self.points.width, self.points.height],
            "step": step,
            "distance": (handles - self.points.targets).norm(dim=-1).tolist(),
        }

    def shown(self, made: dragging.Edited) -> dict[str, Any]:
        """What stays on the node."""
        at = made.track[-1] if made.dragged is None else made.dragged.places
        kept = self._message(at, len(made.track))
        kept |= {"image": _data_url(made.image[0]), "tracks": made.track.transpose(0, 1).tolist()}
        return {"velatura_drag": [kept]}


def _data_url(picture: Tensor) -> str:
    """A picture [3, H, W] in 0 .. 1, made small, as a data URL."""
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).byte().movedim(0, -1).cpu().numpy()
    image, stream = Image.fromarray(pixels), streams.BytesIO()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    image.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


class VelaturaDragIdentity(io.ComfyNode):
    """A LoRA of one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaDragIdentity",
            display_name="Drag Identity (Velatura)",
            category="Velatura/drag",
            description="Fits a small LoRA to the picture, so that a drag without a cut-out keeps what it shows. Takes "
            "about a minute on a GPU; Drag with “cut_out” rarely needs it.",
            search_aliases=["dragdiffusion lora", "identity lora", "fit lora to image"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will drag."),
                io.Conditioning.Input("positive", tooltip="What the picture shows: the same prompt as Drag's."),
                io.Vae.Input("vae", tooltip="The model's own."),
                io.Image.Input("image", tooltip="The picture; the first of a batch."),
                io.Int.Input("steps", default=80, min=1, max=10000, tooltip="Training steps; 80 is the papers'."),
                io.Int.Input("rank", default=16, min=1, max=256, tooltip="The LoRA's rank."),
                io.Float.Input("rate", default=5e-4, min=1e-7, max=0.1, step=1e-5, round=1e-7,
                               tooltip="The learning rate."),
                io.Int.Input("batch_size", default=4, min=1, max=64, tooltip="Noises of a step; less takes less "
                             "memory."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True,
                             tooltip="The noises, and where the LoRA starts."),
                io.Boolean.Input("low_memory", default=False, tooltip="Compute parts of the network twice instead of "
                                 "keeping them."),
            ],
            outputs=[io.Model.Output(tooltip="The model with the LoRA on; for Drag.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, positive: Any, vae: Any, image: Tensor, steps: int, rank: int, rate: float, batch_size: int,
        seed: int, low_memory: bool,
    ) -> io.NodeOutput:  # fmt: skip
        engine, codec = host().engine(model, guided=False), host().codec(vae, model)
        pixels = dragging.padded(image[:1, ..., :3].movedim(-1, 1).float(), codec.factor)
        with torch.no_grad():
            x_0 = codec.encode(pixels * 2 - 1)
        settings = IdentitySettings(steps, rank, batch_size, rate, seed=seed)
        deltas = learn_identity(
            engine, x_0, host().condition(positive), settings, low_memory=low_memory, progress=host().progress(steps)
        )
        return io.NodeOutput(host().with_lora(model, None, deltas, 1.0, 0.0)[0])
