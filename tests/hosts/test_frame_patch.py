"""The released SD 1.5 form in both hosts, against its four steps written out in place of each attention."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from velatura import hosts
from velatura.core.frame_patch import PLACES, FramePatch, frame_patch_from
from velatura.core.protocols import Condition
from velatura.hosts.diffusers import build

SMALL = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64, 64, 64],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "layers_per_block": 2,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "cross_attention_dim": 128, "attention_head_dim": 8,
    "norm_num_groups": 32,
}  # fmt: skip
WIDTHS = [32, 32, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 32, 32, 32, 64]
SD15 = [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280]


@pytest.fixture(scope="module")
def folder(random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sd15") / "small"
    write(random_folder, made)
    return made


def write(demo: Path, folder: Path) -> None:
    """SD 1.5's blocks, thin, with the demo model's text encoder and autoencoder."""
    shutil.copytree(demo, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        unet: Any = build.new_unet(SMALL)
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **SMALL}))
    save_file(unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module", params=["diffusers", "comfyui"])
def host(request: pytest.FixtureRequest) -> Any:
    if request.param == "comfyui":
        if not os.environ.get("COMFYUI_PATH"):
            pytest.skip("COMFYUI_PATH is not set: ComfyUI's adapter is not tested here")
        request.getfixturevalue("comfyui")
    return hosts.load(request.param)


def widths(channels: list[int], context: int) -> list[tuple[int, int]]:
    return [pair for width in channels for pair in ((width, width), (width, context))]


def file(frames: int, told: bool) -> dict[str, Tensor]:
    """A file of the released layout for the thin network."""
    generator = torch.Generator().manual_seed(frames)
    with torch.device("meta"):
        layout = FramePatch(widths(WIDTHS, 128), frames, 4, told).state_dict()
    return {
        name: torch.randn(each.shape, generator=generator) / max(1, each[0].numel()) ** 0.5
        for name, each in layout.items()
    }


class WrittenOut:
    """The four steps at one attention, as the released program says them."""

    def __init__(self, tensors: dict[str, Tensor], number: int, frames: int, strength: float, signals: Any) -> None:
        head = f"hookers.layers.{number}."
        self.w = {key.removeprefix(head): value for key, value in tensors.items() if key.startswith(head)}
        self.frames, self.s, self.signals = frames, strength, signals

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (8, -1)) for each in (q, k, v))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        h, results = hidden_states.clone(), []
        for row in range(len(h)):  # (1) the control
            if h.shape[1] in self.signals:
                c = f"control_convs.{row % self.frames}."
                signal = self.signals[h.shape[1]][row // self.frames % len(self.signals[h.shape[1]])][None]
                inner = F.silu(F.conv2d(signal, self.w[c + "0.weight"], self.w[c + "0.bias"], padding=1))
                told = F.conv2d(inner, self.w[c + "2.weight"], self.w[c + "2.bias"])
                h[row] += self.s * told[0].flatten(1).T
        for row in range(len(h)):  # (2) each frame's own weights
            f, x = row % self.frames, h[row : row + 1]
            context = x if encoder_hidden_states is None else encoder_hidden_states[row : row + 1]

            def of(layer: Any, part: str, x: Tensor, f: int = f) -> Tensor:
                up, down = (self.w[f"to_{part}_lora.{f}.{which}.weight"] for which in ("up", "down"))
                return F.linear(x, layer.weight + self.s * up @ down, layer.bias)

            out = self.attend(of(attn.to_q, "q", x), of(attn.to_k, "k", context), of(attn.to_v, "v", context))
            results.append(x + of(attn.to_out[0], "out", out))
        h = torch.cat(results)
        across = torch.empty_like(h)
        for sample in range(0, len(h), self.frames):  # (3) each token across the frames
            for n in range(h.shape[1]):
                x = h[sample : sample + self.frames, n][None]
                x = F.layer_norm(x, x.shape[-1:], self.w["temporal_n.weight"], self.w["temporal_n.bias"], 1e-6)
                x = self.linear("temporal_i", x)
                out = self.attend(*(self.linear(f"temporal_{part}", x) for part in "qkv"))
                across[sample : sample + self.frames, n] = self.linear("temporal_o", out)[0]
        return h + self.s * across - hidden_states  # (4)


def encoded(tensors: dict[str, Tensor], image: Tensor | None) -> dict[int, Tensor]:
    """The signals, from the tensors of the encoder."""
    found, h = {}, image
    strides = [[1, 1, 2, 1, 2, 1, 2, 1], [2, 1], [2, 1], [2, 1]]
    for block, each in enumerate(strides):
        for conv, stride in enumerate(each):
            head = f"kwargs_encoder.blocks_{block}.{2 * conv}."
            if h is not None:
                h = F.silu(F.conv2d(h, tensors[head + "weight"], tensors[head + "bias"], stride, 1))
        if h is not None:
            found[h[0, 0].numel()] = h
    return found


def expected(folder: Path, tensors: dict[str, Tensor], frames: int, strength: float, image: Any, *call: Any) -> Tensor:
    model = hosts.load("diffusers").load_folder(folder)[0]
    modules = {name.replace(".", "_"): module for name, module in model.unet.named_modules()}
    signals = encoded(tensors, image)
    for number in range(32):
        site = f"{PLACES[number // 2]}_transformer_blocks_0_attn{number % 2 + 1}"
        modules[site].set_processor(WrittenOut(tensors, number, frames, strength, signals))
    with torch.no_grad():
        return model.predict_noise(*call)


@pytest.mark.parametrize(("frames", "told"), [(1, False), (3, False), (2, True)])
def test_it_is_its_four_steps(host: Any, folder: Path, frames: int, told: bool) -> None:
    tensors, native = file(frames, told), host.load_folder(folder)[0]
    generator = torch.Generator().manual_seed(6)
    x, t = torch.randn(2 * frames, 4, 8, 8, generator=generator), torch.tensor([600] * (2 * frames))
    image = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1 if told else None
    condition = Condition(torch.randn(2 * frames, 7, 128, generator=generator))
    plain = host.model(native).predict_noise(x, t, condition)
    patched = host.with_frame_patch(native, frame_patch_from(tensors), 0.7, 0.0, 1.0, image)
    want = expected(folder, tensors, frames, 0.7, image, x, t, condition)
    torch.testing.assert_close(host.model(patched).predict_noise(x, t, condition), want, rtol=0, atol=2e-4)
    assert float((want - plain).abs().max()) > 1e-2
    late = host.with_frame_patch(native, frame_patch_from(tensors), 1.0, 0.0, 0.2, image)
    torch.testing.assert_close(host.model(late).predict_noise(x, t, condition), plain, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused(host: Any, folder: Path, random_folder: Path) -> None:
    tensors, native = file(2, True), host.load_folder(folder)[0]
    with pytest.raises(ValueError, match="another model family"):
        host.with_frame_patch(host.load_folder(random_folder)[0], frame_patch_from(tensors), 1.0, 0.0, 1.0, None)
    small = torch.zeros(1, 3, 64, 128)
    model = host.model(host.with_frame_patch(native, frame_patch_from(tensors), 1.0, 0.0, 1.0, small))
    condition = Condition(torch.zeros(1, 7, 128))
    with pytest.raises(ValueError, match=r"given_image: expected 128x128, .* got 128x64"):
        model.predict_noise(torch.zeros(2, 4, 16, 16), torch.tensor([600] * 2), condition)
    with pytest.raises(ValueError, match="multiples of 2"):
        model.predict_noise(torch.zeros(1, 4, 8, 16), torch.tensor([600]), condition)
    for broken in ({**tensors, "hookers.more": torch.zeros(1)}, {k: v for k, v in tensors.items() if "31" not in k}):
        with pytest.raises(ValueError, match="patch: "):
            frame_patch_from(broken)


@pytest.mark.parametrize(("frames", "told", "size"), [(1, False, 350266608), (3, False, 554404208), (2, True, 563e6)])
def test_the_released_files_have_these_parameters(frames: int, told: bool, size: float) -> None:
    with torch.device("meta"):
        layout = FramePatch(widths(SD15, 768), frames, 256, told).state_dict()
    # In half precision; the rest of a file is its header, under 250 bytes a tensor.
    header = size - 2 * sum(each.numel() for each in layout.values())
    assert 0 < header < 250 * len(layout)
