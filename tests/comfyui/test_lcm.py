"""Few-step models in a real ComfyUI. A failure means an LCM's guidance is lost there, reaches a model it was not given
to, or the two hosts draw different pictures."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from velatura import hosts
from velatura.core.consistency import consistency_steps, lcm_timesteps

from .conftest import Server, velatura, write_lcm

KEY = "time_embedding.cond_proj.weight"


@pytest.fixture(scope="module")
def files(server: Server, sprites_folder: Path) -> None:
    """A full LCM in diffusers' layout, as the published ones are, and in a single file's; a LoRA without guidance; a
    mask."""
    models = server.base / "models"
    for kind in ("loras", "checkpoints", "diffusion_models"):
        (models / kind).mkdir(parents=True, exist_ok=True)
    projection = torch.randn(96, 256, generator=torch.Generator().manual_seed(4)) / 8
    unet = load_file(sprites_folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({**unet, KEY: projection}, models / "diffusion_models" / "official.safetensors")
    single = {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    single["model.diffusion_model.time_embed.cond_proj.weight"] = projection
    save_file(single, models / "checkpoints" / "single.safetensors")
    write_lcm(models / "loras" / "lora.safetensors")
    tensors = load_file(models / "loras" / "lora.safetensors")
    tensors.pop(KEY)
    save_file(tensors, models / "loras" / "plain.safetensors")
    (server.base / "input").mkdir(exist_ok=True)
    half = np.zeros((128, 128), np.uint8)
    half[:, 64:] = 255
    Image.fromarray(half).save(server.base / "input" / "half.png")


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def start(prompt_text: str = "a red glass ball, warm sunset from the left") -> dict[str, Any]:
    return {
        "load": node("VelaturaDemoModel", model="sprites"),
        "text": node("CLIPTextEncode", clip=["load", 1], text=prompt_text),
        "none": node("CLIPTextEncode", clip=["load", 1], text=""),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=2),
    }


def apply(file: str, guidance: float, model: str = "load") -> dict[str, Any]:
    more = {"strength": 1.0, "guidance": guidance, "convention": "from the file"}
    return node("VelaturaLcmModel", model=[model, 0], file=file, **more)


def save(name: str, latent: str) -> dict[str, Any]:
    return {
        f"{name}-pixels": node("VAEDecode", samples=[latent, 0], vae=["load", 2]),
        f"{name}-save": node("SaveImage", images=[f"{name}-pixels", 0], filename_prefix=name),
    }


def stock(model: str, cfg: float = 1.0) -> dict[str, Any]:
    how = {"seed": 3, "steps": 4, "cfg": cfg, "sampler_name": "lcm", "scheduler": "sgm_uniform", "denoise": 1.0}
    return node(
        "KSampler", model=[model, 0], positive=["text", 0], negative=["none", 0], latent_image=["empty", 0], **how
    )


def lcm(model: str, latent: str = "empty", **options: Any) -> dict[str, Any]:
    how: dict[str, Any] = {
        "seed": 3, "steps": 4, "denoise": 1.0, "original_steps": 50, "grid": "paper", "method": "lcm", "gamma": 0.3,
        "cfg": 1.0,
    }  # fmt: skip
    wires = {"model": [model, 0], "positive": ["text", 0], "latent_image": [latent, 0]}
    return node("VelaturaLcmSample", **wires | how | options)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)


def by_name(paths: list[Path]) -> dict[str, np.ndarray]:
    """The pictures of each SaveImage, by its prefix."""
    result: dict[str, list[np.ndarray]] = {}
    for path in sorted(paths, key=lambda each: each.name):
        result.setdefault(path.name.split("_")[0], []).append(pixels(path))
    return {name: np.stack(pictures) for name, pictures in result.items()}


def in_both(server: Server, prompt: dict[str, Any], name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """ComfyUI's pictures and the runtime's."""
    file = server.base / f"{name}.json"
    file.write_text(json.dumps(prompt))
    ours = velatura(server.pack, "run", str(file), "--out", str(server.base / name))["files"]
    return by_name(server.pictures(prompt)), by_name([Path(each) for each in ours])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(float(np.square(a - b).mean()), 1e-9))


@pytest.mark.usefixtures("files")
def test_a_full_lcm_responds_to_omega_and_other_models_do_not(server: Server) -> None:
    graph = {**start(), "plain": stock("load"), **save("before", "plain")}
    before = by_name(server.pictures(graph))["before"]
    graph = start()
    for name, file, guidance in (
        ("low", "diffusion_models/official.safetensors", 2),
        ("high", "diffusion_models/official.safetensors", 9),
        ("single", "checkpoints/single.safetensors", 9),
    ):
        graph |= {f"{name}-model": apply(file, guidance), name: stock(f"{name}-model"), **save(name, name)}
    # Another steps than before: ComfyUI would give its cached result.
    graph |= {"cfg": stock("high-model", 2.0), **save("cfg", "cfg")}
    graph |= {"plain": stock("load"), **save("after", "plain")}
    graph["plain"]["inputs"]["seed"] = 4
    graph |= {"again": stock("load"), **save("again", "again")}
    theirs, ours = in_both(server, graph, "omega")
    assert bool((theirs["again"] == before).all())  # to the bit, in one graph with three patched clones
    assert psnr(theirs["low"], theirs["high"]) < 30
    assert psnr(theirs["high"], before) < 30
    # The same tensor, but elsewhere in its file: a product's last digit may depend on where it lies in memory.
    assert psnr(theirs["single"], theirs["high"]) >= 60
    assert psnr(theirs["cfg"], theirs["high"]) < 40
    for name in theirs:
        assert psnr(ours[name], theirs[name]) >= 40, name


@pytest.mark.usefixtures("files")
def test_few_step_pictures_are_the_same_in_both_hosts(server: Server) -> None:
    graph = {**start(), "lcm": apply("loras/lora.safetensors", 5)}
    levels = {"steps": 4, "denoise": 1.0, "original_steps": 50, "grid": "paper"}
    graph["sigmas"] = node("VelaturaLcmSchedule", model=["lcm", 0], **levels)
    how = {"add_noise": True, "noise_seed": 3, "cfg": 1.0, "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]}
    how |= {"model": ["lcm", 0], "positive": ["text", 0], "negative": ["none", 0]}
    for method in ("lcm", "tcd"):
        one, three, sampler = f"{method}-one", f"{method}-three", f"{method}-sampler"
        graph |= {one: lcm("lcm", method=method), **save(one, one)}
        graph[sampler] = node("VelaturaLcmSampler", method=method, gamma=0.3)
        graph |= {three: node("SamplerCustom", **how, sampler=[sampler, 0]), **save(three, three)}
    graph |= {"guided": lcm("lcm", cfg=1.5, negative=["none", 0]), **save("guided", "guided")}
    theirs, ours = in_both(server, graph, "few")
    for method in ("lcm", "tcd"):
        assert bool((theirs[f"{method}-one"] == theirs[f"{method}-three"]).all())
        assert theirs[f"{method}-one"].std() > 1
    assert psnr(theirs["lcm-one"], theirs["tcd-one"]) < 35
    for name in theirs:
        assert psnr(ours[name], theirs[name]) >= 40, name


@pytest.mark.usefixtures("files")
def test_a_picture_is_changed_and_painted_into_alike_in_both_hosts(server: Server) -> None:
    graph = {
        **start(),
        "night": node("CLIPTextEncode", clip=["load", 1], text="a blue feather, cold night from the left"),
        "lcm": apply("loras/lora.safetensors", 5),
        "first": stock("load"),
        **save("kept", "first"),
        "latent": node("VAEEncode", pixels=["kept-pixels", 0], vae=["load", 2]),
        "mask": node("LoadImageMask", image="half.png", channel="red"),
        "masked": node("SetLatentNoiseMask", samples=["first", 0], mask=["mask", 0]),
        "changed": lcm("lcm", "latent", denoise=0.6, positive=["night", 0]),
        "painted": lcm("lcm", "masked", positive=["night", 0]),
        **save("changed", "changed"),
        **save("painted", "painted"),
    }
    theirs, ours = in_both(server, graph, "image")
    for name in theirs:
        assert psnr(ours[name], theirs[name]) >= 40, name
    left, right = ([theirs[name][:, :, part] for name in ("kept", "painted")] for part in (slice(48), slice(80, None)))
    # The latents are kept to the last digit; the decoder's norms look at the whole picture.
    assert psnr(*left) > psnr(*right) + 5
    assert psnr(theirs["kept"], theirs["changed"]) < 30


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file": "loras/plain.safetensors", "guidance": 8.0}, ["plain.safetensors", KEY]),
        ({"steps": 26, "denoise": 0.5}, ["steps: expected 1 .. 25"]),
        ({"original_steps": 48}, ["original_steps: expected a divisor of 1000"]),
        ({"cfg": 2.0}, ["negative: cfg 2 needs"]),
    ],
)
def test_a_wrong_input_is_told_on_the_node(server: Server, changes: dict[str, Any], said: list[str]) -> None:
    graph = {**start(), "lcm": apply("loras/lora.safetensors", 5), "one": lcm("lcm"), **save("bad", "one")}
    for key, value in changes.items():
        graph["lcm" if key in graph["lcm"]["inputs"] else "one"]["inputs"][key] = value
    history = server.run(graph)
    assert history["status"]["status_str"] == "error"
    (error,) = (message for kind, message in history["status"]["messages"] if kind == "execution_error")
    assert all(part in error["exception_message"] for part in said)


def test_a_folder_of_half_precision_takes_guidance_too(
    comfyui: Path, sprites_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights in fp16 that are cast at each layer, as with --lowvram: the projection goes where the layer's input is.
    from comfy.cli_args import args

    host = hosts.load("comfyui")
    projection = torch.randn(96, 256, generator=torch.Generator().manual_seed(4)) / 16
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([999, 300])

    def eps() -> tuple[Tensor, Tensor]:
        model, clip, _ = host.load_folder(sprites_folder)
        condition = host.text(clip).encode(["a red ball"])
        guided = host.model(host.with_guidance(model, projection, 7.0))
        return guided.predict_noise(x, t, condition), host.model(model).predict_noise(x, t, condition)

    with torch.inference_mode():
        whole, plain = eps()
        monkeypatch.setattr(args, "fp16_unet", True)
        half, _ = eps()
    assert (whole - plain).abs().max() > 0.05
    torch.testing.assert_close(half, whole, rtol=0, atol=2e-2)


@pytest.fixture
def native(comfyui: Path, sprites_folder: Path) -> Any:
    with torch.inference_mode():
        return hosts.load("comfyui").load_folder(sprites_folder)


def drawn(native: Any, steps: int = 4) -> Tensor:
    """What the LCM Sample node asks of the host."""
    host = hosts.load("comfyui")
    schedule = host.model(native[0]).schedule
    sigmas = torch.cat([schedule.sigma(lcm_timesteps(steps)), torch.zeros(1)]).float()
    with torch.inference_mode():
        prompt = host.conditioning(host.text(native[1]).encode(["a red ball"]))
        sampler = host.sampler("lcm", consistency_steps)
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        return host.sample(native[0], sampler, sigmas, prompt, None, 1.0, latent, 3)[0]["samples"]


def test_every_step_shows_the_picture_so_far_in_the_models_colours(
    native: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils
    import latent_preview

    shown: list[tuple[int, int, np.ndarray]] = []

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        shown.append((value, total, np.asarray(preview[1], dtype=np.float64)))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Auto)
    done = drawn(native)
    assert [(value, total) for value, total, _ in shown] == [(step, 4) for step in range(1, 5)]
    codec = hosts.load("comfyui").codec(native[2], native[0])
    with torch.inference_mode():
        picture = codec.decode(codec.scale(done))[0]
    small = torch.nn.functional.avg_pool2d((picture + 1) * 127.5, 8).movedim(0, -1).numpy()
    assert psnr(shown[-1][2], small) > 20  # and not the colours of Stable Diffusion's latents


def test_a_cancel_stops_within_a_step(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management
    import comfy.utils

    calls: list[int] = []
    hook = native[0].model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))

    def cancel(*_: Any, **__: Any) -> None:
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        drawn(native)
    hook.remove()
    assert len(calls) == 1
