"""The layers that a LoRA may change have the same names in every host, and hooks on them are what a file does."""

import torch
from safetensors.torch import load_file

from velatura.demo.architecture import UNET
from velatura.hosts.diffusers import build
from velatura.training import adapters, students


def test_the_names_are_diffusers_module_names(loaded):
    network = build.new_unet(UNET)
    expected = {
        name.replace(".", "_"): tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    assert {name: tuple(layer.weight.shape) for name, layer in loaded.model.layers().items()} == expected


def trained(loaded, x, t, condition) -> students.Student:
    """A LoRA and guidance input after a few steps of descent, in inference mode as ComfyUI runs a graph."""
    layers = loaded.model.layers()
    student = students.Student(lora=adapters.LowRankLayers(layers, 4), guidance=students.GuidanceInput(layers))
    omega = torch.tensor([2.0, 4.0, 6.0])
    with torch.inference_mode(False):
        optimizer = torch.optim.Adam(student.parameters(), 0.01)
    with torch.inference_mode(), loaded.model.differentiable():
        for _ in range(3):
            student(loaded.model, x, t, condition, omega).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return student


def test_hooked_factors_train_and_are_what_their_deltas_say(loaded, x, t, condition):
    before = loaded.model.predict_noise(x, t, condition)
    student = trained(loaded, x, t, condition)
    assert student.lora is not None and all(bool(up.abs().sum() > 0) for up in student.lora.up.values())
    with torch.no_grad(), student.lora.applied(loaded.model.layers()):
        hooked = loaded.model.predict_noise(x, t, condition)
    merged = loaded.model.with_lora(student.lora.deltas()).predict_noise(x, t, condition)
    assert torch.allclose(hooked, merged, atol=1e-5)
    assert float((hooked - before).abs().max()) > 1e-3
    assert torch.allclose(loaded.model.predict_noise(x, t, condition), before, atol=1e-6)


def test_the_written_file_is_read_by_the_hosts_own_lora_loader(loaded, x, t, condition, tmp_path):
    student = trained(loaded, x, t, condition)
    assert student.lora is not None
    path = tmp_path / "mine.safetensors"
    adapters.write_weights(path, adapters.lora_tensors(student.lora.deltas()))
    if loaded.host.name == "comfyui":
        import comfy.sd  # pyright: ignore[reportMissingImports]

        native, _ = comfy.sd.load_lora_for_models(loaded.native[0], None, load_file(path), 1.0, 0)
    else:
        from velatura.core.lora import read_lora

        native, _ = loaded.host.with_lora(loaded.native[0], None, read_lora(load_file(path)), 1.0, 0)
    got = loaded.host.model(native).predict_noise(x, t, condition)
    with torch.no_grad(), student.lora.applied(loaded.model.layers()):
        hooked = loaded.model.predict_noise(x, t, condition)
    assert torch.allclose(got, hooked, atol=5e-3)
    assert not torch.allclose(got, loaded.model.predict_noise(x, t, condition), atol=1e-3)


def test_the_guidance_input_reaches_the_network(loaded, x, t, condition):
    student = trained(loaded, x, t, condition)
    assert student.guidance is not None and bool(student.guidance.weight.abs().sum() > 0)
    with torch.no_grad():
        student.guidance.weight.mul_(50)
        one, two = (student(loaded.model, x, t, condition, torch.full((3,), w)) for w in (1.0, 6.0))
    assert not torch.allclose(one, two, atol=1e-4)
