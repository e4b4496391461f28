"""The runtime's stock nodes beside ComfyUI's: sockets, and results on the same input."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from velatura.hosts.diffusers.text import DiffusersText, Tower
from velatura.hosts.folders import Folders, using
from velatura.runtime.stock import NODES, image, latent, mask
from velatura.runtime.stock.resize import LATENT_METHODS

# What the runtime says more, or in its own words.
_WORDS = {"tooltip", "display_name", "multiselect", "options"}
_FILES = {"ckpt_name", "lora_name", "image"}


@pytest.fixture(scope="module")
def theirs(comfyui):
    """ComfyUI's node classes by id."""
    found = {}
    for module in ("nodes", "comfy_extras.nodes_mask", "comfy_extras.nodes_custom_sampler"):
        found |= importlib.import_module(module).NODE_CLASS_MAPPINGS
    return found


def sockets(inputs):
    """Name -> (type, options, combo values) in order, of a V1 dictionary."""
    result = {}
    # V3 spells out `multiline: False`, V1 leaves it out; so what is False counts as not said.
    for name, (kind, *rest) in ((n, i) for group in ("required", "optional") for n, i in inputs.get(group, {}).items()):
        options = dict(rest[0]) if rest else {}
        values = kind if isinstance(kind, list) else options.get("options")
        described = {key: value for key, value in options.items() if key not in _WORDS and value is not False}
        result[name] = ("COMBO" if isinstance(kind, list) else kind, described, values)
    return result


# ComfyUI defines it in a module that cannot be imported without its server: the next test asks the server.
SERVED = [image.SaveAnimatedWEBP]


@pytest.mark.parametrize("node", [node for node in NODES if node not in SERVED], ids=lambda node: node.__name__)
def test_sockets_are_comfyuis(theirs, node):
    info = node.GET_NODE_INFO_V1()
    other = theirs[info["name"]]
    ours, reference = sockets(info["input"]), sockets(other.INPUT_TYPES())
    assert list(ours) == list(reference)
    for name, (kind, options, values) in ours.items():
        their_kind, their_options, their_values = reference[name]
        assert kind == their_kind, name
        assert options == their_options, name
        if values is not None and name not in _FILES:
            assert [each for each in their_values if each in values] == values, name
            assert values[0] == their_values[0], f"{name}: another default"
    assert info["output"] == list(other.RETURN_TYPES)
    assert info["output_name"] == list(getattr(other, "RETURN_NAMES", other.RETURN_TYPES))
    assert info["category"] == other.CATEGORY
    assert info["output_node"] == getattr(other, "OUTPUT_NODE", False)


@pytest.mark.parametrize("node", SERVED, ids=lambda node: node.__name__)
def test_sockets_are_those_the_server_tells(server, node):
    info = node.GET_NODE_INFO_V1()
    other = server.get(f"object_info/{info['name']}")[info["name"]]
    ours, reference = sockets(info["input"]), sockets(other["input"])
    assert ours == reference
    assert [info[key] for key in ("output", "category", "output_node")] == [
        other[key] for key in ("output", "category", "output_node")
    ]


def run(theirs, node, **inputs):
    """Both results of a node without state, as lists."""
    other = theirs[node.__name__]
    return list(node.execute(**inputs).args), list(getattr(other(), other.FUNCTION)(**inputs))


PICTURE = torch.rand(2, 37, 50, 3, generator=torch.Generator().manual_seed(0))
LATENT = torch.randn(3, 4, 20, 14, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("crop", ["disabled", "center"])
@pytest.mark.parametrize("size", [(64, 64), (23, 90), (0, 20), (100, 0), (0, 0), (50, 37)])
@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
def test_pictures_resize_alike(theirs, method, size, crop):
    given = {"image": PICTURE, "upscale_method": method, "width": size[0], "height": size[1], "crop": crop}
    (ours,), (reference,) = run(theirs, image.ImageScale, **given)
    torch.testing.assert_close(ours, reference, rtol=0, atol=0)


@pytest.mark.parametrize("crop", ["disabled", "center"])
@pytest.mark.parametrize("size", [(128, 128), (72, 320), (0, 256), (256, 0), (0, 0)])
@pytest.mark.parametrize("method", LATENT_METHODS)
def test_latents_resize_alike(theirs, method, size, crop):
    given = {
        "samples": {"samples": LATENT},
        "upscale_method": method,
        "width": size[0],
        "height": size[1],
        "crop": crop,
    }
    (ours,), (reference,) = run(theirs, latent.LatentUpscale, **given)
    torch.testing.assert_close(
        ours["samples"], reference["samples"], rtol=0, atol=1e-4
    )  # acos near opposite directions


BATCHES = [
    {"samples": LATENT},
    {"samples": LATENT, "batch_index": [4, 2, 9]},
    {"samples": LATENT, "noise_mask": torch.rand(1, 1, 8, 8)},
    {"samples": LATENT, "noise_mask": torch.rand(3, 1, 8, 8), "batch_index": [0, 1, 2]},
    {"samples": LATENT, "noise_mask": torch.rand(2, 1, 8, 8)},
]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("node", "given"),
    [(latent.RepeatLatentBatch, {"amount": n}) for n in (1, 3)]
    + [(latent.LatentFromBatch, {"batch_index": i, "length": n}) for i, n in ((0, 1), (1, 2), (2, 5), (9, 9))],
)
def test_batches_are_picked_and_repeated_alike(theirs, node, given, batch):
    (ours,), (reference,) = run(theirs, node, samples=batch, **given)
    assert ours.keys() == reference.keys()
    for key, value in ours.items():
        assert torch.equal(value, reference[key]) if torch.is_tensor(value) else value == reference[key]


def test_masks_and_pictures_convert_alike(theirs):
    for channel in ("red", "green", "blue"):
        (ours,), (reference,) = run(theirs, mask.ImageToMask, image=PICTURE, channel=channel)
        assert torch.equal(ours, reference)
    for shape in ((5, 6), (2, 5, 6)):
        (ours,), (reference,) = run(theirs, mask.MaskToImage, mask=torch.rand(shape))
        assert torch.equal(ours, reference)


def pictures(folder):
    """Files of the kinds that people have."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb = rgba.convert("RGB")
    rgba.save(folder / "alpha.png")
    rgb.save(folder / "plain.png")
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.convert("L").save(folder / "grey.png")
    rgba.convert("LA").save(folder / "grey_alpha.png")
    rgb.quantize(16).save(folder / "palette.png")
    rgb.quantize(16).save(folder / "palette_clear.png", transparency=3)
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    frames = [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    return sorted(each.name for each in folder.iterdir())


def test_files_are_read_alike(theirs, tmp_path):
    import folder_paths

    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    try:
        for name in pictures(tmp_path):
            with using(Folders(input=tmp_path)):
                ours, reference = run(theirs, image.LoadImage, image=name)
                assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True)), name
                for channel in ("alpha", "red", "blue"):
                    ours, reference = run(theirs, image.LoadImageMask, image=name, channel=channel)
                    assert torch.equal(ours[0], reference[0]), (name, channel)
    finally:
        folder_paths.set_input_directory(before)


PROMPTS = [
    "",
    "a photo of a cat",
    "a (red:1.3) cat, ((very)) nice \\(really\\) (dog:0.5)",
    "(((unbalanced",
    "weird ) (thing ) ( a:b) (:1.2) ()",
    "word " * 200 + "(end:1.4)",
    "a (long emphasised segment with more than eight tokens in it to be broken over:1.2) " * 9,
    "(a:1.1:1.3) (b:x) ((c:0.3):2) (d:-0.5)",
    "Ünïcode, 日本語 (😀:1.2)",
]


@pytest.fixture(scope="module")
def towers():
    """Small random text towers with CLIP's vocabulary: settings and networks for SD1.5 and for SDXL's second."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
    small |= {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407, "bos_token_id": 49406}
    first = small | {"hidden_act": "quick_gelu", "projection_dim": 64}
    second = small | {"hidden_act": "gelu", "projection_dim": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = CLIPTextModel(CLIPTextConfig(**first)), CLIPTextModelWithProjection(CLIPTextConfig(**second))
    return (first, networks[0]), (second, networks[1])


def their_weights(network):
    return {k if k.startswith("text_") else f"text_model.{k}": v for k, v in network.state_dict().items()}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_encode_alike(comfyui, towers, prompt):
    from comfy import sd1_clip, sdxl_clip
    from transformers import CLIPTokenizer

    (config, network), (config_2, network_2) = towers
    tokenizer = CLIPTokenizer.from_pretrained(comfyui / "comfy" / "sd1_tokenizer")
    options = {"clip_l_model_config": config, "clip_g_model_config": config_2}

    sd15 = sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float32, model_options=options)
    sd15.clip_l.load_sd(their_weights(network))
    sdxl = sdxl_clip.SDXLClipModel(device="cpu", dtype=torch.float32, model_options=options)
    sdxl.clip_l.load_sd(their_weights(network))
    sdxl.clip_g.load_sd(their_weights(network_2))
    one = DiffusersText((Tower.of(tokenizer, network),))
    first = Tower.of(tokenizer, network, layer=-2, normed=False)
    two = DiffusersText((first, Tower.of(tokenizer, network_2, layer=-2, normed=False, pad=0)))

    for model, words, ours in ((sd15, sd1_clip.SD1Tokenizer(), one), (sdxl, sdxl_clip.SDXLTokenizer(), two)):
        with torch.no_grad():
            embedding, pooled = model.encode_token_weights(words.tokenize_with_weights(prompt))[:2]
        condition = ours.encode([prompt])
        torch.testing.assert_close(condition.embedding, embedding, rtol=0, atol=1e-5)
        torch.testing.assert_close(condition.pooled, pooled, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def both(sprites_folder, comfyui):
    """MODEL, CLIP and VAE of the demo model in each host."""
    from velatura.hosts import load

    return load("diffusers").load_folder(sprites_folder), load("comfyui").load_folder(sprites_folder)


def picture(nodes, model, clip, vae, call, **settings):
    """A workflow: two prompts, a sampler over a batch of two, decoding."""
    (positive,) = call(nodes["CLIPTextEncode"], clip=clip, text="a (red:1.3) ball on a table")
    (negative,) = call(nodes["CLIPTextEncode"], clip=clip, text="blue")
    (empty,) = call(nodes["EmptyLatentImage"], width=128, height=128, batch_size=2)
    given = {"cfg": 5.0, "positive": positive, "negative": negative, "latent_image": empty}
    (latent,) = call(nodes["KSampler"], model=model, denoise=1.0, **given, **settings)
    (decoded,) = call(nodes["VAEDecode"], samples=latent, vae=vae)
    return decoded


def psnr(image, reference):
    return -10 * float((image - reference).square().mean().clamp(min=1e-20).log10())


@pytest.mark.parametrize(
    ("sampler_name", "scheduler"),
    [("euler", "normal"), ("dpmpp_2m", "karras"), ("euler_ancestral", "simple"), ("dpm_2", "sgm_uniform")],
)
def test_same_seed_same_picture(theirs, both, sampler_name, scheduler):
    settings = {"seed": 11, "steps": 6, "sampler_name": sampler_name, "scheduler": scheduler}
    stock = {node.__name__: node for node in NODES}
    runtime, native = both

    def in_comfyui(node, **given):
        return getattr(node(), node.FUNCTION)(**given)

    ours = picture(stock, *runtime, lambda node, **given: node.execute(**given).args, **settings)
    with torch.inference_mode():
        reference = picture(theirs, *native, in_comfyui, **settings)
    assert ours.shape == reference.shape
    assert psnr(ours, reference) >= 60


def kohya_lora(model, clip):
    """A rank-2 LoRA for every attention and convolution of the network, and for the text encoder, in kohya's layout."""
    generator = torch.Generator().manual_seed(0)
    weights = {}

    def add(name, weight):
        base, size = name.replace(".", "_"), weight.shape
        weights[f"{base}.lora_up.weight"] = 0.1 * torch.randn(size[0], 2, *[1] * (weight.ndim - 2), generator=generator)
        weights[f"{base}.lora_down.weight"] = 0.1 * torch.randn(2, *size[1:], generator=generator)
        weights[f"{base}.alpha"] = torch.tensor(1.0)

    for name, module in model.unet.named_modules():
        if ("attn" in name and isinstance(module, torch.nn.Linear)) or name.endswith("conv1"):
            add(f"lora_unet.{name}", module.weight)
    for name, module in clip.towers[0].encoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            add(f"lora_te.text_model.{name.removeprefix('text_model.')}", module.weight)
    return weights


def test_a_lora_does_the_same(theirs, both, tmp_path):
    import folder_paths

    runtime, native = both
    (tmp_path / "loras").mkdir()
    save_file(kohya_lora(*runtime[:2]), tmp_path / "loras" / "test_stock.safetensors")
    folder_paths.add_model_folder_path("loras", str(tmp_path / "loras"))
    stock = {node.__name__: node for node in NODES}
    settings = {"seed": 11, "steps": 3, "sampler_name": "euler", "scheduler": "normal"}
    given = {"lora_name": "test_stock.safetensors", "strength_model": 0.8, "strength_clip": 0.6}

    def here(node, **inputs):
        return node.execute(**inputs).args

    def there(node, **inputs):
        return getattr(node(), node.FUNCTION)(**inputs)

    with using(Folders(models=tmp_path)):
        plain = picture(stock, *runtime, here, **settings)
        model, clip = here(stock["LoraLoader"], model=runtime[0], clip=runtime[1], **given)
        ours = picture(stock, model, clip, runtime[2], here, **settings)
    with torch.inference_mode():
        model, clip = there(theirs["LoraLoader"], model=native[0], clip=native[1], **given)
        reference = picture(theirs, model, clip, native[2], there, **settings)
    assert psnr(ours, reference) >= 60
    assert psnr(ours, plain) < 40, "the LoRA changes the picture"
