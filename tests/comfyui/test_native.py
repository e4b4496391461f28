"""Our adapters beside ComfyUI's own samplers and nodes, on native objects of several families."""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from velatura import hosts
from velatura.core.ddim import ddim_timesteps, ddim_transfer
from velatura.core.inversion import Settings, invert
from velatura.core.lora import LowRank, LowRankDeltas, Target
from velatura.core.protocols import Condition
from velatura.core.reconstruct import reconstruct
from velatura.demo.architecture import UNET

XL_POOLED = 32
XL = {"num_classes": "sequential", "adm_in_channels": XL_POOLED + 6 * 256}
LAYER = Target("unet", "up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q")


@pytest.fixture(autouse=True)
def executor() -> Any:
    """ComfyUI's executor runs nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def host(comfyui: Path) -> Any:
    return hosts.load("comfyui")


@pytest.fixture(scope="module")
def native(host: Any, random_folder: Path) -> Any:
    """MODEL, CLIP and VAE of the random folder, loaded as a node would load them."""
    with torch.inference_mode():
        return host.load_folder(random_folder)


@pytest.fixture(scope="module")
def nodes(comfyui: Path) -> ModuleType:
    """ComfyUI's stock nodes."""
    return importlib.import_module("nodes")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(network: torch.nn.Module) -> None:
    """Seeded weights; ComfyUI's layers do not initialise theirs."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            parameter.data = torch.full_like(parameter, 1.0 if name.endswith("weight") else 0.01)
        else:
            inputs = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) / inputs**0.5


def tiny(family: str, prediction: str = "epsilon") -> Any:
    """A MODEL of one of ComfyUI's families at the demo model's size."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher

    from velatura.hosts.comfyui.load import FolderModel, sampling_settings, unet_config

    extra = XL if family == "SDXL" else {}
    config = FolderModel(unet_config(UNET) | extra, comfy.latent_formats.SDXL())
    config.sampling_settings = sampling_settings({"rescale_betas_zero_snr": prediction == "v_prediction"})
    kind = {"epsilon": "EPS", "v_prediction": "V_PREDICTION"}[prediction]
    model = getattr(comfy.model_base, family)(config, getattr(comfy.model_base.ModelType, kind))
    fill(model.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def theirs(patcher: Any, x: Tensor, t: Tensor, conditioning: Any) -> Tensor:
    """eps as ComfyUI's samplers get it, from the same variance-preserving latent."""
    import comfy.model_management
    import comfy.sampler_helpers
    import comfy.samplers

    model = patcher.model
    conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
    extra = comfy.sampler_helpers.get_additional_models(conds, torch.float32)[0]
    comfy.model_management.load_models_gpu([patcher, *extra])
    conds = comfy.samplers.process_conds(model, x, conds, x.device)
    patcher.pre_run()
    sigma = model.model_sampling.sigma(t)
    column = sigma[:, None, None, None]
    x_ve = x * (1 + column**2).sqrt()
    (x_0,) = comfy.samplers.calc_cond_batch(model, [conds["positive"]], x_ve, sigma, patcher.model_options)
    patcher.cleanup()
    return (x_ve - x_0) / column


X, T = seeded(3, 4, 16, 16), torch.tensor([999, 400, 7])
CONDITION = Condition(seeded(1, 32, 128, seed=1))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_is_that_of_comfyuis_samplers(host: Any, prediction: str) -> None:
    patcher = tiny("BaseModel", prediction)
    ours = host.model(patcher).predict_noise(X, T, CONDITION)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs(patcher, X, T, host.conditioning(CONDITION)), rtol=0, atol=2e-5)


def test_sdxl_gets_its_pooled_prompt_and_sizes(host: Any) -> None:
    patcher = tiny("SDXL")
    extras = {"width": 640, "height": 384, "crop_w": 16}
    condition = Condition(CONDITION.embedding, seeded(1, XL_POOLED, seed=2), extras)
    model = host.model(patcher)
    ours = model.predict_noise(X, T, condition)
    torch.testing.assert_close(ours, theirs(patcher, X, T, host.conditioning(condition)), rtol=0, atol=2e-5)
    other = Condition(condition.embedding, condition.pooled, {**extras, "width": 64})
    assert (model.predict_noise(X, T, other) - ours).abs().max() > 1e-4
    with pytest.raises(ValueError, match="pooled"):
        model.predict_noise(X, T, CONDITION)
    with model.differentiable():
        z = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model.predict_noise(z, T, condition).square().sum(), z)
    assert grad.isfinite().all()


def controlnet(strength: float = 1.0) -> Any:
    """A ControlNet at the demo model's size, its picture set."""
    import comfy.cldm.cldm
    import comfy.controlnet

    from velatura.hosts.comfyui.load import unet_config

    network = comfy.cldm.cldm.ControlNet(**unet_config(UNET), hint_channels=3)
    fill(network)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    return control.set_cond_hint(seeded(1, 3, 128, 128), strength, (0.0, 1.0))


@pytest.mark.parametrize("family", ["v_prediction", "SDXL", "controlnet", "fp16"])
def test_a_latent_is_inverted_and_comes_back(
    host: Any, sprites_folder: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimised are float32 null texts, whatever the weights and whatever else the condition carries."""
    from comfy.cli_args import args

    pooled = seeded(1, XL_POOLED, seed=2) if family == "SDXL" else None
    extras = {"controlnet": {"control": controlnet(0.2)}, "SDXL": {"width": 128, "height": 128}}.get(family, {})
    condition, null = (Condition(0.5 * seeded(1, 32, 128, seed=seed), pooled, extras) for seed in (1, 3))
    if family == "fp16":
        monkeypatch.setattr(args, "fp16_unet", True)
        patcher = host.load_folder(sprites_folder)[0]
        assert patcher.model_dtype() == torch.float16
    else:
        patcher = tiny("SDXL" if family == "SDXL" else "BaseModel", "v_prediction" if family[0] == "v" else "epsilon")
    model, x_0 = host.model(patcher), X[:1]

    def missed(method: Any) -> float:
        settings = Settings(ddim_timesteps(1000, 4), method, guidance=2.0, tolerance=1e-3)
        found = invert(model, x_0, condition, null, settings)
        assert found.nulls is None or found.nulls.dtype == torch.float32
        return float((reconstruct(model, found) - x_0).square().mean().sqrt())

    assert missed("exact") < 1e-3
    # A network of random weights says little by its text, so null texts cannot mend all.
    assert missed("null_text") < missed("ddim")


def test_a_controlnet_on_the_condition_is_applied(host: Any) -> None:
    patcher, control = tiny("BaseModel"), controlnet()
    condition = Condition(CONDITION.embedding, extras={"control": control})
    model = host.model(patcher)
    ours = model.predict_noise(X, T, condition)
    assert control.cond_hint is None  # cleaned up after each use
    assert (ours - model.predict_noise(X, T, CONDITION)).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs(patcher, X, T, host.conditioning(condition)), rtol=0, atol=2e-5)
    way = seeded(1, 32, 128, seed=5)
    at = T[1:2]

    def projected(embedding: Any) -> Any:
        return model.predict_noise(X[:1], at, Condition(embedding, extras={"control": control})).double().sum()

    gradients = []
    for low_memory in (False, True):
        with model.differentiable(low_memory=low_memory):
            embedding = CONDITION.embedding.clone().requires_grad_()
            gradients += torch.autograd.grad(projected(embedding), embedding)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    step = 1e-2
    slope = (projected(CONDITION.embedding + step * way) - projected(CONDITION.embedding - step * way)) / (2 * step)
    assert float((gradients[0] * way).sum()) == pytest.approx(float(slope), rel=1e-2)


def test_a_flow_model_is_refused(host: Any) -> None:
    import comfy.model_sampling

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    patcher = tiny("BaseModel")
    patcher.add_object_patch("model_sampling", Flow())
    with pytest.raises(ValueError, match="variance-preserving"):
        host.model(patcher)


def test_the_schedule_is_the_one_a_node_patched_in(host: Any) -> None:
    import comfy.model_sampling

    class ZeroSnr(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    patcher = tiny("BaseModel").clone()
    patcher.add_object_patch("model_sampling", ZeroSnr(zsnr=True))
    model = host.model(patcher)
    assert model.schedule.alphas_cumprod[-1] < 1e-6
    ours = model.predict_noise(X, T, CONDITION)
    torch.testing.assert_close(ours, theirs(patcher, X, T, host.conditioning(CONDITION)), rtol=0, atol=2e-5)


def sample(nodes: ModuleType, model: Any, positive: Any, negative: Any, latent: Any, **how: Any) -> Tensor:
    settings = {"seed": 3, "steps": 5, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"} | how
    order = ("seed", "steps", "cfg", "sampler_name", "scheduler")
    (result,) = nodes.KSampler().sample(model, *(settings[k] for k in order), positive, negative, latent)
    return result["samples"]


def test_stock_nodes_run_on_a_folder(host: Any, nodes: ModuleType, native: Any) -> None:
    model, clip, vae = native
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a red ball", ""))
    (latent,) = nodes.EmptyLatentImage().generate(128, 128, 2)
    samples = sample(nodes, model, positive, negative, latent, cfg=3.0)
    (image,) = nodes.VAEDecode().decode(vae, {"samples": samples})
    assert image.shape == (2, 128, 128, 3)
    (again,) = nodes.VAEEncode().encode(vae, image)
    assert again["samples"].shape == (2, 4, 16, 16)
    # The engine reads the wires' latents and images as ComfyUI means them.
    codec = host.codec(vae)
    torch.testing.assert_close(codec.unscale(codec.encode(image.movedim(-1, 1) * 2 - 1)), again["samples"])
    torch.testing.assert_close((codec.decode(codec.scale(samples)).movedim(1, -1) + 1) / 2, image)


def test_a_folder_has_its_own_latent_scale(host: Any, random_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_folder, folder)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.7}))
    model, _, vae = host.load_folder(folder)
    raw, image = seeded(1, 4, 8, 8), seeded(1, 3, 64, 64).clamp(-1, 1)
    torch.testing.assert_close(host.model(model).scale(raw), 0.7 * raw)
    torch.testing.assert_close(model.model.process_latent_in(raw), 0.7 * raw)
    torch.testing.assert_close(host.codec(vae).encode(image), 0.7 * vae.encode((image.movedim(1, -1) + 1) / 2))


def test_a_vae_takes_the_latent_format_of_the_model_it_serves(host: Any, native: Any) -> None:
    # A stock VAE does not know its own; SDXL's would otherwise be scaled as Stable Diffusion 1's.
    raw = seeded(1, 4, 8, 8)
    _, _, vae = native
    torch.testing.assert_close(host.codec(vae).scale(raw), host.model(native[0]).scale(raw))
    torch.testing.assert_close(host.codec(vae, tiny("SDXL")).scale(raw), 0.13025 * raw)
    stock = copy.copy(vae)
    delattr(stock, "velatura_latent_format")
    torch.testing.assert_close(host.codec(stock).scale(raw), 0.18215 * raw)


def test_our_ddim_is_comfyuis_euler(host: Any, nodes: ModuleType, native: Any) -> None:
    import comfy.sample
    import comfy.samplers

    native_model, clip, _ = native
    (positive,) = nodes.CLIPTextEncode().encode(clip, "a red ball")
    (latent,) = nodes.EmptyLatentImage().generate(128, 128, 2)
    expected = sample(nodes, native_model, positive, positive, latent)
    model, condition = host.model(native_model), host.condition(positive)
    sampling = native_model.get_model_object("model_sampling")
    times = model.schedule.nearest_timestep(comfy.samplers.calculate_sigmas(sampling, "simple", 5)[:-1])
    x = comfy.sample.prepare_noise(latent["samples"], 3)
    for t, s in zip(times, [*times[1:], torch.tensor(-1)], strict=True):
        x = ddim_transfer(model.schedule, x, model.predict_noise(x, t, condition), t, s)
    torch.testing.assert_close(model.unscale(x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_replacement_of_another_pack_stays_under_the_rule(host: Any, native: Any) -> None:
    calls: list[str] = []

    def adapter(q: Tensor, k: Tensor, v: Tensor, options: Any) -> Tensor:
        calls.append("adapter")
        assert {"cond_or_uncond", "sigmas", "uuids", "n_heads"} <= options.keys()  # what adapters read
        return torch.zeros_like(q)

    other = native[0].clone()
    other.set_model_attn2_replace(adapter, "middle", 0)
    model = host.model(other)
    alone = model.predict_noise(X, T, CONDITION)
    with model.attention(lambda site, q, k, v, attend: attend(q, k, v)):
        ruled = model.predict_noise(X, T, CONDITION)
    assert calls == ["adapter", "adapter"]
    torch.testing.assert_close(ruled, alone, rtol=0, atol=1e-6)


def test_function_wrappers_of_other_packs_are_kept(host: Any, native: Any) -> None:
    other = native[0].clone()
    other.set_model_unet_function_wrapper(lambda run, call: run(call["input"], call["timestep"], **call["c"]) * 0)
    eps = host.model(other).predict_noise(X, T, CONDITION)
    sigma = host.model(other).schedule.sigma(T)[:, None, None, None].float()
    torch.testing.assert_close(eps, X * (1 + sigma**2).sqrt() / sigma)


def test_nothing_stays_on_the_hosts_model(host: Any, native: Any) -> None:
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel

    patcher = native[0]
    model = host.model(patcher)
    defaults = openaimodel.UNetModel.forward.__defaults__
    before = json.dumps(patcher.model_options, default=repr)
    with (
        model.differentiable(),
        model.taps("mid", "up.0"),
        model.attention(lambda site, q, k, v, attend: attend(q, k, v)),
    ):
        model.predict_noise(X, T.float(), CONDITION)
    assert json.dumps(patcher.model_options, default=repr) == before
    assert not any(module._forward_hooks for module in patcher.model.modules())
    assert not any(parameter.requires_grad for parameter in patcher.model.parameters())
    assert openaimodel.UNetModel.forward.__defaults__ == defaults == (None, None, None, None, {})
    assert patcher.wrappers == patcher.clone().wrappers
    assert not any(by_key.get("velatura.timesteps") for by_key in patcher.wrappers.values())


def test_models_come_and_go_through_the_memory_manager(host: Any, native: Any) -> None:
    import comfy.model_management as management

    def loaded() -> list[Any]:
        return [id(each) for each in management.loaded_models()]

    model = host.model(native[0])
    plain = model.predict_noise(X, T, CONDITION)
    assert id(native[0]) in loaded()
    deltas = LowRankDeltas({LAYER: LowRank(seeded(96, 4), seeded(4, 96, seed=1))})
    changed = model.with_lora(deltas)
    other = changed.predict_noise(X, T, CONDITION)
    assert id(native[0]) not in loaded()  # a clone takes its place on the same weights
    torch.testing.assert_close(model.predict_noise(X, T, CONDITION), plain, rtol=0, atol=0)
    torch.testing.assert_close(changed.predict_noise(X, T, CONDITION), other, rtol=0, atol=0)
    with changed.differentiable():
        z = X.clone().requires_grad_()
        torch.autograd.grad(changed.predict_noise(z, T, CONDITION).sum(), z)
    management.unload_all_models()
    assert loaded() == []
    torch.testing.assert_close(model.predict_noise(X, T, CONDITION), plain, rtol=0, atol=0)
    with model.differentiable():  # unpatching brought the original weights back
        z = X.clone().requires_grad_()
        torch.autograd.grad(model.predict_noise(z, T, CONDITION).sum(), z)


def test_a_lora_that_does_not_fit_is_refused(host: Any, native: Any) -> None:
    wide = LowRankDeltas({LAYER: LowRank(seeded(320, 4), seeded(4, 320))})
    with pytest.raises(ValueError, match=r"do not fit a weight \(96, 96\)"):
        host.model(native[0]).with_lora(wide)
    with pytest.raises(ValueError, match="nothing for the UNet"):
        host.model(native[0]).with_lora(LowRankDeltas({LAYER._replace(component="text"): LowRank(X, X)}))


def test_cancelling_stops_at_the_next_step(host: Any) -> None:
    import comfy.model_management as management

    progress = host.progress(3)
    progress(1, 3, None)
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        progress(2, 3, None)
    progress(3, 3, None)  # asked for once


def test_previews_go_to_the_running_node(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils

    shown: list[Any] = []
    hook = lambda value, total, preview, node_id=None: shown.append((value, total, preview))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    image = torch.zeros(3, 8, 16)
    image[0] = 2.0  # beyond white is white
    host.progress(4)(2, 4, image)
    ((value, total, (kind, picture, side)),) = shown
    assert (value, total, kind, side) == (2, 4, "JPEG", 512)
    assert picture.size == (16, 8)
    assert picture.getpixel((3, 3)) == (255, 0, 0)


def test_conditioning_keeps_what_it_carries(host: Any) -> None:
    native = [[seeded(1, 32, 128), {"pooled_output": seeded(1, 8), "area": (1, 2), "strength": 0.5}]]
    ((embedding, extras),) = host.conditioning(host.condition(native))
    assert embedding is native[0][0]
    assert extras.keys() == native[0][1].keys()
    assert all(extras[key] is native[0][1][key] for key in extras)
    with pytest.raises(ValueError, match="conditioning"):
        host.condition([])


def test_rows_that_do_not_fit_the_batch_are_refused(host: Any, native: Any) -> None:
    with pytest.raises(ValueError, match="expected 1 or 3 rows"):
        host.model(native[0]).predict_noise(X, T, Condition(seeded(2, 32, 128)))


def damage(folder: Path, how: str) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if how == "missing":
        weights.unlink()
    elif how == "pickle":
        weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif how == "other":
        shutil.copy(folder / "vae" / weights.name, weights)
    elif how == "json":
        (folder / "unet" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "unet.*missing"),
        ("pickle", "pickle.*safetensors"),
        ("truncated", "not a whole safetensors file"),
        ("other", "of another network"),
        ("json", "not valid JSON"),
    ],
)
def test_a_broken_folder_says_what_is_wrong(
    host: Any, random_folder: Path, tmp_path: Path, how: str, says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_folder, folder)
    damage(folder, how)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        host.load_folder(folder)


def test_a_folder_without_a_model_says_so(host: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model_index"):
        host.load_folder(tmp_path)
