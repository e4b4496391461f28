"""The few-step nodes on the embedded runtime. A failure means a file is applied otherwise than it says, or a wrong
input passes in silence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from velatura.hosts import folders
from velatura.hosts import load as load_host
from velatura.hosts.diffusers.sigmas import NoiseLevels
from velatura.nodes import lcm, load
from velatura.nodes.lcm import VelaturaLcmModel, VelaturaLcmSample, VelaturaLcmSampler, VelaturaLcmSchedule
from velatura.runtime.stock.sampling import KSampler, SamplerCustom

HOST = load_host("diffusers")
GENERATOR = torch.Generator().manual_seed(4)
PROJECTION = torch.randn(96, 256, generator=GENERATOR) / 8
LAYER = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
LORA = {
    f"lora_unet_{LAYER}.lora_down.weight": torch.randn(4, 160, generator=GENERATOR) / 4,
    f"lora_unet_{LAYER}.lora_up.weight": torch.randn(160, 4, generator=GENERATOR) / 4,
    f"lora_unet_{LAYER}.alpha": torch.tensor(4.0),
}
KEY = "time_embedding.cond_proj.weight"
METADATA = {"velatura_guidance": "scale", "velatura_guidance_default": "3"}


@pytest.fixture(scope="module")
def native(random_folder: Path) -> Any:
    return HOST.load_folder(random_folder)


@pytest.fixture
def model(native: Any) -> Any:
    return native[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, random_folder: Path) -> Path:
    """A models folder with every kind of file that an LCM comes in, and some that are none."""
    root = tmp_path_factory.mktemp("models")
    unet = load_file(random_folder / "unet" / "diffusion_pytorch_model.safetensors")
    text = {f"lora_te_x.{part}.weight": torch.ones(2, 2) for part in ("lora_up", "lora_down")}
    strange = {key.replace("down_blocks_1", "double_blocks_9"): value for key, value in LORA.items()}
    tensors: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {
        "loras/plain.safetensors": (LORA, {}),
        "loras/guided.safetensors": ({**LORA, KEY: PROJECTION}, {"velatura_guidance": "omega"}),
        "loras/scale.safetensors": ({KEY: PROJECTION}, METADATA),
        "loras/text.safetensors": (text, {}),
        "loras/strange.safetensors": (strange, {}),
        "loras/wide.safetensors": ({KEY: torch.zeros(320, 256)}, {}),
        "diffusion_models/full.safetensors": ({**unet, KEY: PROJECTION}, {}),
        "checkpoints/single.safetensors": ({"model.diffusion_model.time_embed.cond_proj.weight": PROJECTION}, {}),
        "checkpoints/ordinary.safetensors": (unet, {}),
    }  # fmt: skip
    for name, (content, metadata) in tensors.items():
        (root / name).parent.mkdir(exist_ok=True)
        save_file(content, root / name, metadata)
    (root / "loras" / "old.ckpt").write_bytes(b"pickle")
    (root / "loras" / "broken.safetensors").write_bytes(b"not safetensors")
    return root


@pytest.fixture(autouse=True)
def here(files: Path) -> Iterator[None]:
    with folders.using(folders.Folders(models=files)):
        yield


def applied(
    model: Any, file: str, guidance: float = -1.0, strength: float = 1.0, convention: str = "from the file"
) -> Any:
    return VelaturaLcmModel.execute(model, file, strength, guidance, convention).args[0]


def eps(native: Any, model: Any) -> Tensor:
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return model.predict_noise(x, torch.tensor([700]), native[1].encode(["a red ball"]))


def same(native: Any, ours: Any, theirs: Any) -> bool:
    return torch.allclose(eps(native, ours), eps(native, theirs), atol=1e-5)


def expected(model: Any, omega: float | None, *, lora: bool = False) -> Any:
    """The engine's own way to the same model."""
    from velatura.core.lora import read_lora

    model = model.with_lora(read_lora(LORA)) if lora else model
    return model if omega is None else model.with_guidance(PROJECTION, omega)


def test_the_users_files_are_listed_by_kind_after_the_shipped_one() -> None:
    file = VelaturaLcmModel.GET_NODE_INFO_V1()["input"]["required"]["file"][1]
    assert file["options"][0] == file["default"] == lcm.DEMO
    kinds = [each.split("/")[0] for each in file["options"][1:]]
    assert kinds == sorted(kinds, key=lcm.KINDS.index) and set(kinds) == set(lcm.KINDS)
    assert "loras/guided.safetensors" in file["options"]


@pytest.mark.parametrize(
    ("file", "guidance", "convention", "lora", "omega"),
    [
        ("loras/plain.safetensors", -1, "from the file", True, None),
        ("loras/guided.safetensors", -1, "from the file", True, 6.5),
        ("loras/guided.safetensors", 8, "from the file", True, 7),
        ("loras/guided.safetensors", 0, "from the file", True, -1),
        ("loras/scale.safetensors", -1, "from the file", False, 3),
        ("loras/scale.safetensors", 8, "from the file", False, 8),
        ("loras/scale.safetensors", 8, "omega = guidance - 1", False, 7),
        ("diffusion_models/full.safetensors", 8, "from the file", False, 7),
        ("diffusion_models/full.safetensors", 8, "omega = guidance", False, 8),
        ("checkpoints/single.safetensors", 8, "from the file", False, 7),
    ],
)
def test_each_kind_of_file_does_what_it_holds(
    native: Any, model: Any, file: str, guidance: float, convention: str, lora: bool, omega: float | None
) -> None:
    plain = eps(native, model)
    got = applied(model, file, guidance, convention=convention)
    assert same(native, got, expected(model, omega, lora=lora))
    assert not torch.allclose(eps(native, got), plain, atol=1e-3)
    torch.testing.assert_close(eps(native, model), plain, rtol=0, atol=0)


def test_strength_is_the_loras_alone(native: Any, model: Any) -> None:
    assert same(native, applied(model, "loras/guided.safetensors", 8, 0.0), expected(model, 7))


def test_the_shipped_file_is_found_or_missed_by_name(
    native: Any, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "DEMO_MODELS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"sprites-lcm\.safetensors"):
        applied(model, lcm.DEMO)
    save_file({**LORA, KEY: PROJECTION}, tmp_path / lcm.DEMO_FILE)
    assert same(native, applied(model, lcm.DEMO, 8), expected(model, 7, lora=True))


@pytest.mark.parametrize(
    ("file", "guidance", "named"),
    [
        ("loras/plain.safetensors", 8, r"time_embedding\.cond_proj\.weight"),
        ("loras/text.safetensors", -1, "text encoders only"),
        ("loras/strange.safetensors", -1, "double_blocks_9"),
        ("loras/wide.safetensors", -1, r"\[96, an even width\].*\(320, 256\)"),
        ("loras/old.ckpt", -1, "pickle"),
        ("loras/broken.safetensors", -1, "not a whole safetensors file"),
        ("checkpoints/ordinary.safetensors", -1, r"no LCM.*time_embedding\.cond_proj\.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_what_it_lacks(
    model: Any, file: str, guidance: float, named: str
) -> None:
    with pytest.raises(ValueError, match=named) as raised:
        applied(model, file, guidance)
    assert Path(file).name in str(raised.value)


def test_a_missing_file_says_where_it_was_looked_for(model: Any) -> None:
    with pytest.raises(FileNotFoundError, match="loras"):
        applied(model, "loras/gone.safetensors")


def test_a_changed_file_is_read_again(files: Path) -> None:
    file = files / "loras" / "plain.safetensors"
    before = VelaturaLcmModel.fingerprint_inputs(file="loras/plain.safetensors", strength=1.0)
    os.utime(file, (1, 1))
    assert VelaturaLcmModel.fingerprint_inputs(file="loras/plain.safetensors") != before


@pytest.mark.parametrize(
    ("arguments", "times"),
    [
        ((4, 1.0, 50, "paper"), [999, 759, 519, 279]),
        ((4, 1.0, 50, "diffusers"), [999, 759, 499, 259]),
        ((4, 0.5, 50, "paper"), [499, 379, 259, 139]),
        ((2, 1.0, 100, "paper"), [999, 499]),
    ],
)
def test_levels_are_those_of_whole_timesteps(model: Any, arguments: Any, times: list[int]) -> None:
    (sigmas,) = VelaturaLcmSchedule.execute(model, *arguments).args
    levels = NoiseLevels.of(model.schedule).sigmas
    assert sigmas.tolist() == [*levels[times].tolist(), 0.0]  # to the bit: what the network is told is what there is


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((26, 0.5, 50, "paper"), "steps: expected 1 .. 25"),
        ((51, 1.0, 50, "paper"), "steps: expected 1 .. 50"),
        ((4, 1.0, 48, "paper"), "original_steps: expected a divisor of 1000, got 48"),
    ],
)
def test_an_impossible_schedule_is_refused(model: Any, arguments: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VelaturaLcmSchedule.execute(model, *arguments)


def prompt(native: Any, text: str = "a red ball") -> Any:
    return HOST.conditioning(native[1].encode([text]))


def latent(batch: int = 1) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 4, 16, 16)}


def drawn(native: Any, model: Any, start: Any = None, **options: Any) -> Tensor:
    settings: dict[str, Any] = {
        "seed": 5, "steps": 4, "denoise": 1.0, "original_steps": 50, "grid": "paper", "method": "lcm", "gamma": 0.3,
        "cfg": 1.0,
    }  # fmt: skip
    return VelaturaLcmSample.execute(model, prompt(native), start or latent(), **settings | options).args[0]["samples"]


@pytest.mark.parametrize("method", ["lcm", "tcd"])
def test_the_one_node_is_the_three_nodes(native: Any, model: Any, method: str) -> None:
    (sigmas,) = VelaturaLcmSchedule.execute(model, 4, 1.0, 50, "paper").args
    (sampler,) = VelaturaLcmSampler.execute(method, 0.3).args
    p = prompt(native)
    parts = SamplerCustom.execute(model, True, 5, 1.0, p, p, sampler, sigmas, latent(2)).args
    together = drawn(native, model, latent(2), method=method)
    torch.testing.assert_close(together, parts[0]["samples"], rtol=0, atol=0)
    other = drawn(native, model, latent(2), method="tcd" if method == "lcm" else "lcm")
    assert (other - together).abs().max() > 1e-2


def test_gamma_is_tcds_alone(native: Any, model: Any) -> None:
    torch.testing.assert_close(drawn(native, model, gamma=0.0), drawn(native, model, gamma=1.0), rtol=0, atol=0)
    assert (drawn(native, model, method="tcd", gamma=0.0) - drawn(native, model, method="tcd")).abs().max() > 1e-2


def test_cfg_needs_a_negative_prompt(native: Any, model: Any) -> None:
    with pytest.raises(ValueError, match="negative: cfg 2 needs"):
        drawn(native, model, cfg=2.0)
    guided = drawn(native, model, cfg=2.0, negative=prompt(native, "a blue feather"))
    assert (guided - drawn(native, model)).abs().max() > 1e-2


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_seed_draws_what_diffusers_pipeline_draws(native: Any, model: Any, strength: float) -> None:
    from diffusers import LatentConsistencyModelImg2ImgPipeline, LatentConsistencyModelPipeline, LCMScheduler

    ours = applied(model, "diffusion_models/full.safetensors", 8.0)
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts: dict[str, Any] = {"vae": native[2].vae, "text_encoder": None, "tokenizer": None, "unet": ours.unet}
    parts |= {"scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    call: dict[str, Any] = {
        "prompt_embeds": native[1].encode(["a red ball"]).embedding, "guidance_scale": 8.0, "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(5), "output_type": "latent",
    }  # fmt: skip
    if strength == 1:
        pipe: Any = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        theirs, start = pipe(**call, height=128, width=128).images, None
    else:
        picture = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
        pipe = LatentConsistencyModelImg2ImgPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        theirs = pipe(**call, image=picture, strength=strength).images
        start = {"samples": model.unscale(picture)}
    got = drawn(native, ours, start, grid="diffusers", denoise=strength)
    torch.testing.assert_close(model.scale(got), theirs, rtol=0, atol=2e-3)


def test_the_stock_sampler_is_told_the_guidance(native: Any, model: Any) -> None:
    p = prompt(native)

    def stock(model: Any) -> Tensor:
        return KSampler.execute(model, 3, 4, 1.0, "lcm", "sgm_uniform", p, p, latent()).args[0]["samples"]

    low, high = (stock(applied(model, "diffusion_models/full.safetensors", guidance)) for guidance in (2, 9))
    assert (low - high).abs().max() > 1e-2


def test_every_step_shows_the_picture_so_far(native: Any, model: Any) -> None:
    from velatura.hosts.running import reporting

    seen: list[tuple[int, int, Any]] = []
    with reporting(lambda total: lambda step, total, preview=None: seen.append((step, total, preview.shape))):
        drawn(native, model)
    assert seen == [(step, 4, (3, 16, 16)) for step in range(1, 5)]
