"""The same folder loaded in both hosts: the engine must not be able to tell them apart."""

# pyright: reportMissingImports=false
from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from velatura import hosts
from velatura.core.lora import LowRankDeltas, read_lora
from velatura.core.protocols import Attend, Condition, Site
from velatura.training import adapters, smooth, students

NOISE = 1e-4
"""The largest difference allowed between two predictions of unit-variance noise."""

PROMPTS = ["a red ball, on a green field", "a blue feather", ""]


class Pair(NamedTuple):
    comfy: Any
    diffusers: Any

    def noise(self, *args: Any) -> tuple[Tensor, Tensor]:
        return self.comfy.predict_noise(*args), self.diffusers.predict_noise(*args)


class Both(NamedTuple):
    model: Pair
    text: Pair
    codec: Pair


def both(folder: Path, mode: bool) -> Both:
    loaded = []
    # Only ComfyUI loads models in inference mode.
    for name, inference in (("comfyui", mode), ("diffusers", False)):
        host = hosts.load(name)
        with torch.inference_mode(inference):
            model, clip, vae = host.load_folder(folder)
        loaded.append((host.model(model), host.text(clip), host.codec(vae)))
    return Both(*(Pair(*parts) for parts in zip(*loaded, strict=True)))


@pytest.fixture(scope="module", params=["plain", "inference mode"])
def mode(request: pytest.FixtureRequest) -> bool:
    """Whether we are where ComfyUI's executor runs nodes."""
    return request.param == "inference mode"


@pytest.fixture(scope="module")
def loaded(mode: bool, comfyui: Path, sprites_folder: Path) -> Both:
    return both(sprites_folder, mode)


@pytest.fixture(autouse=True)
def executor(mode: bool) -> Iterator[None]:
    with torch.inference_mode(mode):
        yield


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def case(loaded: Both) -> tuple[Tensor, Tensor, Condition]:
    """Three latents, a timestep for each, and a condition, made as a node would find them."""
    return seeded(3, 4, 16, 16), torch.tensor([999, 500, 0]), loaded.text.comfy.encode(PROMPTS)


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_noise(loaded: Both, case: Any) -> None:
    close(*loaded.model.noise(*case), atol=NOISE)


def test_noise_between_two_timesteps(loaded: Both, case: Any) -> None:
    # ComfyUI rounds to whole timesteps; an exact inversion asks for others.
    x, _, condition = case
    close(*loaded.model.noise(x, torch.tensor([998.5, 500.25, 0.4]), condition), atol=NOISE)


def test_schedule(loaded: Both) -> None:
    ours, theirs = loaded.model.comfy.schedule, loaded.model.diffusers.schedule
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-6, atol=0)


def test_features(loaded: Both, case: Any) -> None:
    places = loaded.model.comfy.places()
    assert places == loaded.model.diffusers.places()
    with loaded.model.comfy.taps(*places) as ours, loaded.model.diffusers.taps(*places) as theirs:
        loaded.model.noise(*case)
    assert {place: relative(ours[place], theirs[place]) < 1e-4 for place in places} == dict.fromkeys(places, True)


def test_attention_rule(loaded: Both, case: Any) -> None:
    assert loaded.model.comfy.sites() == loaded.model.diffusers.sites()
    seen: dict[int, list[tuple[Site, Tensor, Tensor, Tensor]]] = {}

    def rule(number: int) -> Any:
        def swap(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
            seen.setdefault(number, []).append((site, q, k, v))
            if site.kind == "self":
                return attend(q, torch.cat([k, k.roll(1, 0)], dim=1), torch.cat([v, v.roll(1, 0)], dim=1))
            return 0.5 * attend(q, k, v.flip(0))

        return swap

    plain = loaded.model.comfy.predict_noise(*case)
    with loaded.model.comfy.attention(rule(0)), loaded.model.diffusers.attention(rule(1)):
        ours, theirs = loaded.model.noise(*case)
    assert (ours - plain).abs().max() > 10 * NOISE
    close(ours, theirs, atol=NOISE)
    for (site, *mine), (other, *other_mine) in zip(seen[0], seen[1], strict=True):
        assert site == other
        assert max(relative(a, b) for a, b in zip(mine, other_mine, strict=True)) < 1e-3


@contextmanager
def differentiable(pair: Pair) -> Iterator[None]:
    with pair.comfy.differentiable(), pair.diffusers.differentiable():
        yield


def gradients(model: Any, case: Any, place: str) -> list[Tensor]:
    """Of the noise and of a feature, with respect to the latent and the embedding."""
    x, t, condition = case
    z, c = (v.clone().requires_grad_() for v in (x, condition.embedding))
    with model.taps(place) as features:
        eps = model.predict_noise(z, t, condition.with_embedding(c))
    weight = seeded(*eps.shape, seed=1)
    of_noise = torch.autograd.grad((eps * weight).sum(), [z, c], retain_graph=True)
    return [*of_noise, *torch.autograd.grad(features[place].square().mean(), [z, c])]


def test_gradients(loaded: Both, case: Any) -> None:
    with differentiable(loaded.model):
        ours, theirs = (gradients(model, case, "up.0") for model in loaded.model)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        assert relative(mine, other) < 1e-4


def test_gradients_of_half_precision_weights(
    mode: bool, loaded: Both, case: Any, sprites_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # fp16 weights, computed in fp32: what most users have (ComfyUI's manual cast).
    from comfy.cli_args import args

    monkeypatch.setattr(args, "fp16_unet", True)
    half = hosts.load("comfyui").model(hosts.load("comfyui").load_folder(sprites_folder)[0])
    assert half.native.model_dtype() == torch.float16
    assert half.dtype == torch.float32
    with differentiable(loaded.model), half.differentiable():
        ours, theirs = gradients(half, case, "up.0"), gradients(loaded.model.diffusers, case, "up.0")
    assert max(relative(*pair) for pair in zip(ours, theirs, strict=True)) < 1e-2  # the weights' own rounding


def layouts() -> dict[str, dict[str, Tensor]]:
    """One change of the UNet's attention, in each layout that LoRA files have."""
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    files: dict[str, dict[str, Tensor]] = {"peft": {}, "kohya": {}, "processor": {}}
    layers = {"attn1.to_q": (160, 160), "attn2.to_k": (160, 128), "attn1.to_out.0": (160, 160)}
    for seed, (layer, (out, inner)) in enumerate(layers.items()):
        down, up = 0.3 * seeded(4, inner, seed=seed), 0.3 * seeded(out, 4, seed=seed + 10)
        files["peft"] |= {f"unet.{block}.{layer}.lora_A.weight": down, f"unet.{block}.{layer}.lora_B.weight": up}
        name = f"lora_unet_{block}.{layer}".replace(".", "_")
        halved = {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": 2 * up,
            f"{name}.alpha": torch.tensor(2.0),
        }
        files["kohya"] |= halved
        attn, which = layer.split(".")[:2]
        processor = f"{block}.{attn}.processor.{which}_lora"
        files["processor"] |= {f"{processor}.down.weight": down, f"{processor}.up.weight": up}
    return files


@pytest.mark.parametrize("layout", ["peft", "kohya", "processor"])
def test_lora(loaded: Both, case: Any, layout: str) -> None:
    plain = loaded.model.comfy.predict_noise(*case)
    deltas = read_lora(layouts()[layout])
    with torch.inference_mode(False):
        theirs = loaded.model.diffusers.with_lora(deltas, 0.7)
    pair = Pair(loaded.model.comfy.with_lora(deltas, 0.7), theirs)
    ours, theirs = pair.noise(*case)
    assert (theirs - plain).abs().max() > 10 * NOISE
    close(ours, theirs, atol=NOISE)
    with differentiable(pair):
        mine, other = (gradients(model, case, "mid") for model in pair)
    assert max(relative(*each) for each in zip(mine, other, strict=True)) < 1e-3
    close(loaded.model.comfy.predict_noise(*case), plain, atol=0)


def text_lora() -> LowRankDeltas:
    name = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
    factors = {f"{name}.lora_A.weight": seeded(4, 128), f"{name}.lora_B.weight": seeded(128, 4, seed=1)}
    return read_lora(factors | layouts()["peft"])


def test_text(loaded: Both) -> None:
    long = "a red ball, " * 12
    for prompts in (PROMPTS, ["a (red:1.4) ball on a (green) field"], [long, "a ball"]):
        ours, theirs = (text.encode(prompts) for text in loaded.text)
        assert ours.embedding.shape == theirs.embedding.shape
        assert relative(ours.embedding, theirs.embedding) < 1e-4
        assert relative(ours.pooled, theirs.pooled) < 1e-4


def test_lora_through_the_hosts(loaded: Both, case: Any) -> None:
    results = []
    for name, model, text in (
        ("comfyui", loaded.model.comfy.native, loaded.text.comfy.native),
        ("diffusers", loaded.model.diffusers, loaded.text.diffusers),
    ):
        host = hosts.load(name)
        changed, clip = host.with_lora(model, text, text_lora(), 0.8, 0.5)
        embedding = host.text(clip).encode(PROMPTS).embedding
        results.append((embedding, host.model(changed).predict_noise(*case)))
        assert (embedding - host.text(text).encode(PROMPTS).embedding).abs().max() > 1e-2
        assert host.with_lora(None, None, text_lora(), 1.0, 1.0) == (None, None)
    (our_text, our_noise), (their_text, their_noise) = results
    assert relative(our_text, their_text) < 1e-3
    close(our_noise, their_noise, atol=NOISE)


def test_codec(loaded: Both) -> None:
    image = (seeded(2, 3, 64, 96) / 2).clamp(-1, 1)
    ours, theirs = (codec.encode(image) for codec in loaded.codec)
    assert relative(ours, theirs) < 1e-4
    close(*(codec.decode(theirs) for codec in loaded.codec), atol=1e-4)
    raw = seeded(1, 4, 8, 8)
    close(*(codec.scale(raw) for codec in loaded.codec), atol=1e-6)
    close(loaded.model.comfy.scale(raw), loaded.codec.diffusers.scale(raw), atol=1e-6)


SD1 = {
    "block_out_channels": [32, 64, 96, 96],
    "layers_per_block": 2,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "attention_head_dim": 8,
}
SD2 = {**SD1, "attention_head_dim": [2, 4, 6, 6], "use_linear_projection": True}
DEEP = {
    "block_out_channels": [32, 64, 96],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [1, 2, 3],
    "use_linear_projection": True,
}


@pytest.mark.parametrize("shape", [SD1, SD2, DEEP], ids=["SD1", "SD2", "XL"])
def test_networks_shaped_like_the_published_ones(
    comfyui: Path, random_folder: Path, tmp_path: Path, shape: dict[str, Any]
) -> None:
    from velatura.demo.architecture import UNET
    from velatura.hosts.diffusers.build import new_unet

    folder = tmp_path / "model"
    shutil.copytree(random_folder, folder)
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(0)
        new_unet({**UNET, **shape}).save_pretrained(folder / "unet")
    model = both(folder, mode=False).model
    assert model.comfy.places() == model.diffusers.places()
    assert model.comfy.sites() == model.diffusers.sites()
    case = seeded(2, 4, 16, 24), torch.tensor([900, 30]), Condition(seeded(2, 32, 128, seed=1))
    places = model.comfy.places()
    with model.comfy.taps(*places) as ours, model.diffusers.taps(*places) as theirs:
        close(*model.noise(*case), atol=NOISE)
    assert max(relative(ours[place], theirs[place]) for place in places) < 1e-4

    def rule(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        return attend(q, k, v * (1 + site.depth) if site.kind == "cross" else v.roll(1, 0))

    with model.comfy.attention(rule), model.diffusers.attention(rule):
        close(*model.noise(*case), atol=NOISE)


@pytest.mark.parametrize("low_memory", [False, True])
def test_smoothing_has_the_same_norms_and_gradients(loaded: Both, low_memory: bool) -> None:
    """The double backward through both networks, with a LoRA hooked on: the step of a Smooth-LoRA's training."""
    ours, theirs = (smoothed(*each, low_memory) for each in zip(loaded.model, loaded.text, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=max(1e-6, 2e-3 * float(b.abs().max())))


def smoothed(model: Any, text: Any, low_memory: bool) -> list[Tensor]:
    """The norms, the noise and the gradients of a LoRA's factors."""
    z, eps, u = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (1, 2, 3))
    t, condition = torch.tensor([700, 150]), text.encode(PROMPTS[:2])
    lora = adapters.LowRankLayers(model.layers(), 2, which="attention")
    with torch.no_grad():
        for k, name in enumerate(sorted(lora.up)):
            up = lora.up[name]
            up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(k)) / 50)
    student = students.Student(lora=lora)
    with torch.inference_mode(False), model.differentiable(low_memory=low_memory), sdpa_kernel(SDPBackend.MATH):
        z, eps, u, condition = z.clone(), eps.clone(), u / 16, condition.with_embedding(condition.embedding.clone())
        norms, noise = smooth.variation(model.schedule, lambda x, t: student(model, x, t, condition, t), z, eps, u, t)
        loss = (noise - eps).square().mean() + (norms - 0.1).square().mean()
        gradients = torch.autograd.grad(loss, [lora.down[name] for name in sorted(lora.down)])
    return [norms.detach(), noise.detach(), *gradients]
