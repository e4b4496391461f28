"""The stock nodes as a workflow uses them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from velatura.hosts.diffusers.samplers import SAMPLERS
from velatura.hosts.folders import Folders, using
from velatura.hosts.schema import Hidden
from velatura.runtime.registry import by_id
from velatura.runtime.stock import NODES
from velatura.runtime.stock.resize import CROPS, IMAGE_METHODS, LATENT_METHODS, resize

STOCK = by_id(NODES)


def call(id_, **inputs):
    """A node's results, its inputs filled up with the defaults that its schema states."""
    given_ = {}
    for each in STOCK[id_].GET_SCHEMA().inputs:
        default = each.options.get("default")
        if default is None and each.options.get("options"):
            default = each.options["options"][0]
        given_[each.id] = inputs.get(each.id, default)
    assert not set(inputs) - set(given_)
    return STOCK[id_].execute(**given_).args


@pytest.fixture
def place(tmp_path):
    with using(Folders(*(tmp_path / name for name in ("input", "output", "temp", "models")))) as chosen:
        for each in (chosen.input, chosen.models):
            each.mkdir()
        yield chosen


@pytest.fixture(scope="module")
def parts(sprites_folder):
    """MODEL, CLIP, VAE and two conditionings."""
    from velatura.hosts.diffusers.checkpoints import load

    model, clip, vae = load(sprites_folder)
    return model, clip, vae, *(call("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a red ball", ""))


def ksampler(parts, **more):
    model, _, _, positive, negative = parts
    (empty,) = call("EmptyLatentImage", width=64, height=64)
    given_ = {"model": model, "positive": positive, "negative": negative, "latent_image": empty, "seed": 1, "steps": 3}
    return call("KSampler", **given_ | more)[0]


def advanced(parts, latent, **more):
    model, _, _, positive, negative = parts
    given_ = {"model": model, "positive": positive, "negative": negative, "latent_image": latent, "noise_seed": 1}
    return call("KSamplerAdvanced", **given_ | {"steps": 6} | more)[0]


def test_every_stock_node_is_there():
    loaders = {"CheckpointLoaderSimple", "LoraLoader", "LoraLoaderModelOnly"}
    prompts = {"CLIPTextEncode", "CLIPSetLastLayer", "ConditioningCombine"}
    samplers = {"KSampler", "KSamplerAdvanced", "SamplerCustom", "KSamplerSelect", "BasicScheduler"}
    latents = {"EmptyLatentImage", "VAEEncode", "VAEDecode", "LatentUpscale", "RepeatLatentBatch", "LatentFromBatch"}
    images = {"LoadImage", "LoadImageMask", "ImageToMask", "MaskToImage", "ImageScale", "SaveImage", "PreviewImage"}
    images |= {"SaveAnimatedWEBP"}
    latents |= {"SetLatentNoiseMask"}
    assert set(STOCK) == loaders | prompts | samplers | latents | images


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_socket_is_explained(node):
    schema = node.GET_SCHEMA()
    assert schema.description and all(each.tooltip for each in schema.inputs)


def test_a_batch_is_what_its_samples_are_alone(parts):
    both = ksampler(parts, latent_image={"samples": torch.zeros(2, 4, 8, 8)})
    (second,) = call("LatentFromBatch", samples={"samples": torch.zeros(2, 4, 8, 8)}, batch_index=1)
    alone = ksampler(parts, latent_image=second)
    reference = ksampler(parts, latent_image={"samples": torch.zeros(2, 4, 8, 8), "batch_index": [0, 1]})
    torch.testing.assert_close(alone["samples"], reference["samples"][1:], rtol=1e-4, atol=1e-3)
    assert both["samples"].shape == (2, 4, 8, 8)


def test_combined_prompts_pull_alike(parts):
    _, _, _, positive, negative = parts
    once = ksampler(parts)
    (twice,) = call("ConditioningCombine", conditioning_1=positive, conditioning_2=positive)
    (other,) = call("ConditioningCombine", conditioning_1=positive, conditioning_2=negative)
    assert len(positive) == 1 and len(twice) == 2, "a node's inputs stay as they are"
    torch.testing.assert_close(ksampler(parts, positive=twice)["samples"], once["samples"], rtol=1e-3, atol=1e-3)
    assert (ksampler(parts, positive=other)["samples"] - once["samples"]).abs().max() > 1e-2


def test_steps_may_be_shared_out_between_samplers(parts):
    (empty,) = call("EmptyLatentImage", width=64, height=64)
    whole = advanced(parts, empty)
    first = advanced(parts, empty, end_at_step=3, return_with_leftover_noise="enable")
    second = advanced(parts, first, start_at_step=3, add_noise="disable")
    torch.testing.assert_close(second["samples"], whole["samples"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ksampler(parts, steps=6)["samples"], whole["samples"], rtol=1e-4, atol=1e-3)
    assert advanced(parts, first, start_at_step=9)["samples"] is first["samples"], "no step left, nothing done"
    denoised = advanced(parts, empty, end_at_step=3, return_with_leftover_noise="disable")
    model, _, _, positive, negative = parts
    (sigmas,) = call("BasicScheduler", model=model, steps=6)
    (sampler,) = call("KSamplerSelect")
    given_ = {"model": model, "positive": positive, "negative": negative, "latent_image": empty, "noise_seed": 1}
    _, seen = call("SamplerCustom", sampler=sampler, sigmas=sigmas[:4], **given_)
    torch.testing.assert_close(denoised["samples"], seen["samples"], rtol=1e-4, atol=1e-3)


def test_custom_sampling_is_the_ksampler_taken_apart(parts):
    model, _, _, positive, negative = parts
    (sigmas,) = call("BasicScheduler", model=model, scheduler="karras", steps=3)
    (sampler,) = call("KSamplerSelect", sampler_name="dpmpp_2m")
    (empty,) = call("EmptyLatentImage", width=64, height=64)
    given_ = {"model": model, "positive": positive, "negative": negative, "latent_image": empty}
    done, denoised = call("SamplerCustom", sampler=sampler, sigmas=sigmas, noise_seed=1, **given_)
    whole = ksampler(parts, sampler_name="dpmpp_2m", scheduler="karras")
    torch.testing.assert_close(done["samples"], whole["samples"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(done["samples"], denoised["samples"], rtol=1e-4, atol=1e-3)


def test_no_denoising_changes_nothing(parts):
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(ksampler(parts, latent_image=latent, denoise=0.0)["samples"], latent["samples"])


def test_an_empty_latent_fits_any_model_and_a_full_one_must(parts):
    filled = ksampler(parts, latent_image={"samples": torch.zeros(1, 16, 8, 8)}, steps=1)
    assert filled["samples"].shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="latent_image: the model works on 4 channels, the latent has 16"):
        ksampler(parts, latent_image={"samples": torch.ones(1, 16, 8, 8)})


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_on_a_network(parts, name):
    assert ksampler(parts, sampler_name=name, steps=2)["samples"].isfinite().all()


def test_pictures_are_coded_in_cells_of_the_latent(parts):
    vae = parts[2]
    pixels = torch.rand(2, 69, 50, 3, generator=torch.Generator().manual_seed(0))
    (latent,) = call("VAEEncode", pixels=pixels, vae=vae)
    assert latent["samples"].shape == (2, 4, 8, 6)
    (exact,) = call("VAEEncode", pixels=pixels[:, 2:66, 1:49], vae=vae)
    assert torch.equal(latent["samples"], exact["samples"]), "the middle is kept"
    (decoded,) = call("VAEDecode", samples=latent, vae=vae)
    assert decoded.shape == (2, 64, 48, 3) and decoded.min() >= 0 and decoded.max() <= 1
    with pytest.raises(ValueError, match="pixels: expected pictures of at least 8x8"):
        call("VAEEncode", pixels=pixels[:, :5], vae=vae)


def lora(folder, model, name="style.safetensors", **more):
    name_of = next(n for n, _ in model.unet.named_parameters() if n.endswith("attn1.to_q.weight"))
    size = model.unet.get_parameter(name_of).shape[0]
    generator = torch.Generator().manual_seed(0)
    key = name_of.removesuffix(".weight")
    (folder / "loras").mkdir(exist_ok=True)
    weights = {f"unet.{key}.lora_A.weight": torch.randn(2, size, generator=generator)}
    weights[f"unet.{key}.lora_B.weight"] = torch.randn(size, 2, generator=generator)
    save_file({**weights, **more}, folder / "loras" / name)


def test_a_guidance_embedding_beside_the_factors_is_left_out_as_in_comfyui(parts, place):
    model = parts[0]
    lora(place.models, model)
    lora(place.models, model, "few.safetensors", **{"time_embedding.cond_proj.weight": torch.ones(96, 256)})
    few, plain = (
        call("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=1.0)[0]
        for name in ("few.safetensors", "style.safetensors")
    )
    assert torch.equal(ksampler((few, *parts[1:]))["samples"], ksampler((plain, *parts[1:]))["samples"])


def test_loras_are_added_and_taken_back(parts, place):
    model, clip = parts[:2]
    lora(place.models, model)
    assert STOCK["LoraLoader"].GET_SCHEMA().inputs[2].options["options"] == ["style.safetensors"]
    plain = ksampler(parts)["samples"]
    (changed,) = call("LoraLoaderModelOnly", model=model, lora_name="style.safetensors", strength_model=0.8)
    assert not torch.allclose(ksampler((changed, *parts[1:]))["samples"], plain, atol=1e-3)
    both, same_clip = call("LoraLoader", model=changed, clip=clip, lora_name="style.safetensors", strength_model=-0.8)
    torch.testing.assert_close(ksampler((both, *parts[1:]))["samples"], plain, rtol=1e-2, atol=1e-2)
    assert same_clip is clip, "the file has nothing for the text encoder"
    assert call("LoraLoader", model=model, clip=clip, lora_name="", strength_model=0.0, strength_clip=0.0) == (
        model,
        clip,
    )


def test_loras_that_do_not_fit_are_named(parts, place):
    (place.models / "loras").mkdir()
    save_file({"unet.nowhere.lora_A.weight": torch.ones(2, 4), "unet.nowhere.lora_B.weight": torch.ones(4, 2)},
              place.models / "loras" / "other.safetensors")  # fmt: skip
    (place.models / "loras" / "old.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"other.safetensors: LoRA: 1 of 1 layers are not in this"):
        call("LoraLoaderModelOnly", model=parts[0], lora_name="other.safetensors")
    with pytest.raises(ValueError, match=r"old.pt: expected a .safetensors file"):
        call("LoraLoaderModelOnly", model=parts[0], lora_name="old.pt")
    with pytest.raises(FileNotFoundError, match=r"loras: there is no 'none.safetensors'"):
        call("LoraLoaderModelOnly", model=parts[0], lora_name="none.safetensors")
    with pytest.raises(FileNotFoundError, match="loras: there is no"):
        call("LoraLoaderModelOnly", model=parts[0], lora_name="../../secret.safetensors")


def test_checkpoints_are_files_and_pipeline_folders(place, random_folder):
    root = place.models / "checkpoints"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "sprites").symlink_to(random_folder, target_is_directory=True)
    (root / "one.safetensors").write_bytes(b"")
    (root / "old.ckpt").write_bytes(b"")
    (root / "notes.txt").write_text("")
    options = STOCK["CheckpointLoaderSimple"].GET_SCHEMA().inputs[0].options["options"]
    assert options == ["old.ckpt", "one.safetensors", "sub/sprites"]
    assert len(call("CheckpointLoaderSimple", ckpt_name="sub/sprites")) == 3
    with pytest.raises(ValueError, match=r"one.safetensors: not a whole safetensors file"):
        call("CheckpointLoaderSimple", ckpt_name="one.safetensors")


def test_saved_pictures_count_on_and_carry_their_workflow(place):
    prompt, workflow = {"1": {"class_type": "SaveImage"}}, {"nodes": []}
    node = STOCK["SaveImage"].PREPARE_CLASS_CLONE({Hidden.prompt: prompt, Hidden.extra_pnginfo: {"workflow": workflow}})
    images = torch.rand(2, 5, 7, 3)
    first = node.execute(images=images, filename_prefix="set/%width%x%height%").ui.as_dict()["images"]
    second = node.execute(images=images[:1], filename_prefix="set/%width%x%height%").ui.as_dict()["images"]
    assert [each["filename"] for each in (*first, *second)] == [f"7x5_{i:05}_.png" for i in (1, 2, 3)]
    assert first[0]["subfolder"] == "set" and first[0]["type"] == "output"
    with Image.open(place.output / "set" / "7x5_00002_.png") as saved:
        assert json.loads(saved.info["prompt"]) == prompt and json.loads(saved.info["workflow"]) == workflow
        assert np.abs(np.asarray(saved) / 255 - images[1].numpy()).max() < 1 / 255
    shown = STOCK["PreviewImage"].execute(images=images).ui.as_dict()["images"]
    assert [each["type"] for each in shown] == ["temp", "temp"] and len(list(place.temp.iterdir())) == 2


def test_an_animation_keeps_its_frames_its_speed_and_its_workflow(place):
    prompt, workflow = {"1": {"class_type": "SaveAnimatedWEBP"}}, {"nodes": []}
    hidden = {Hidden.prompt: prompt, Hidden.extra_pnginfo: {"workflow": workflow}}
    node = STOCK["SaveAnimatedWEBP"].PREPARE_CLASS_CLONE(hidden)
    images = torch.rand(3, 8, 6, 3)
    how = {"fps": 4.0, "lossless": True, "quality": 80, "method": "default"}
    shown = node.execute(images=images, filename_prefix="film/morph", **how).ui.as_dict()
    assert shown["animated"] == (True,) and shown["images"][0]["subfolder"] == "film"
    with Image.open(place.output / "film" / shown["images"][0]["filename"]) as film:
        assert film.n_frames == 3
        film.seek(2)
        film.load()
        assert film.info["duration"] == 250
        assert np.abs(np.asarray(film.convert("RGB")) / 255 - images[2].numpy()).max() < 1 / 255
        assert film.getexif()[0x0110] == "prompt:" + json.dumps(prompt)
        assert film.getexif()[0x010F] == "workflow:" + json.dumps(workflow)


def test_alpha_becomes_a_mask_of_what_is_transparent(place):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(place.input / "a.png")
    image, mask = call("LoadImage", image="a.png")
    assert torch.equal(image, torch.from_numpy(pixels[None, ..., :3].astype(np.float32) / 255))
    assert torch.equal(mask, 1 - torch.from_numpy(pixels[None, ..., 3].astype(np.float32) / 255))
    assert torch.equal(call("LoadImageMask", image="a.png", channel="alpha")[0], mask)
    assert torch.equal(call("LoadImageMask", image="a.png", channel="green")[0], image[..., 1])


def test_pictures_without_alpha_get_an_empty_mask(place):
    Image.new("RGB", (9, 6)).save(place.input / "a.jpg")
    image, mask = call("LoadImage", image="a.jpg")
    assert image.shape == (1, 6, 9, 3) and mask.shape == (1, 64, 64) and not mask.any()


def test_pictures_stand_upright(place):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.new("RGB", (9, 6)).save(place.input / "a.jpg", exif=exif)
    assert call("LoadImage", image="a.jpg")[0].shape == (1, 9, 6, 3)


def test_sixteen_bits_keep_their_range(place):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(place.input / "a.png")
    assert call("LoadImage", image="a.png")[0][0, 0, :, 0].tolist() == pytest.approx([0, 0.5, 1], abs=0.005)


def test_animations_are_batches(place):
    frames = [Image.new("RGB", (9, 6), color) for color in ("red", "green", "blue")]
    frames[0].save(place.input / "a.gif", save_all=True, append_images=frames[1:])
    assert call("LoadImage", image="a.gif")[0].shape == (3, 6, 9, 3)


def test_pictures_that_cannot_be_read_are_named(place):
    (place.input / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(place.input / "whole.png")
    (place.input / "cut.png").write_bytes((place.input / "whole.png").read_bytes()[:60])
    for name in ("a.png", "cut.png"):
        with pytest.raises(ValueError, match=f"image: .*{name} is not a whole picture"):
            call("LoadImage", image=name)
    with pytest.raises(FileNotFoundError, match=r"image: there is no 'b.png'"):
        call("LoadImage", image="b.png")
    assert "there is no '../x.png'" in STOCK["LoadImage"].validate_inputs(image="../x.png")
    assert STOCK["LoadImage"].validate_inputs(image="whole.png") is True


def test_a_changed_file_is_another_input(place):
    Image.new("RGB", (4, 4)).save(place.input / "a.png")
    before = STOCK["LoadImage"].fingerprint_inputs(image="a.png")
    Image.new("RGB", (4, 4), "red").save(place.input / "a.png")
    assert STOCK["LoadImage"].fingerprint_inputs(image="a.png") != before


BATCH = st.integers(1, 6)


@given(BATCH, st.integers(1, 5), st.booleans())
def test_repeating_repeats_all_that_belongs_to_a_sample(size, amount, indexed):
    latent = {"samples": torch.arange(size, dtype=torch.float32).reshape(size, 1, 1, 1)}
    latent["noise_mask"] = latent["samples"].clone()
    if indexed:
        latent["batch_index"] = list(range(3, 3 + size))
    (result,) = call("RepeatLatentBatch", samples=latent, amount=amount)
    expected = list(range(size)) * amount
    assert result["samples"].flatten().tolist() == expected
    if size > 1:
        assert result["noise_mask"].flatten().tolist() == expected
    if indexed:
        assert result["batch_index"] == list(range(3, 3 + size * amount)), "no noise is given twice"


@given(BATCH, st.integers(0, 8), st.integers(1, 8))
def test_picking_keeps_number_and_mask(size, start, length):
    latent = {"samples": torch.arange(size, dtype=torch.float32).reshape(size, 1, 1, 1)}
    latent["noise_mask"] = latent["samples"].clone()
    (result,) = call("LatentFromBatch", samples=latent, batch_index=start, length=length)
    chosen = list(range(size))[min(start, size - 1) :][:length]
    assert result["batch_index"] == chosen and result["samples"].flatten().tolist() == chosen
    if size > 1:
        assert result["noise_mask"].flatten().tolist() == chosen


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_masks_and_pictures_are_each_others_inverse(size, height, width):
    mask = torch.rand(size, height, width, generator=torch.Generator().manual_seed(0))
    (image,) = call("MaskToImage", mask=mask)
    assert image.shape == (size, height, width, 3)
    for channel in ("red", "green", "blue"):
        assert torch.equal(call("ImageToMask", image=image, channel=channel)[0], mask)


def test_a_channel_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="channel: the image has 3 channels, no alpha"):
        call("ImageToMask", image=torch.zeros(1, 2, 2, 3), channel="alpha")


@pytest.mark.parametrize("method", sorted({*IMAGE_METHODS, *LATENT_METHODS}))
@pytest.mark.parametrize("crop", CROPS)
def test_a_flat_picture_stays_flat_at_any_size(method, crop):
    flat = torch.tensor([0.2, 0.4, 0.6]).reshape(1, 3, 1, 1).expand(2, 3, 11, 17)
    resized = resize(flat, 30, 9, method, crop)
    assert resized.shape == (2, 3, 9, 30)
    torch.testing.assert_close(resized, flat[..., :1, :1].expand_as(resized), rtol=0, atol=1 / 255)


def test_cropping_keeps_the_proportions():
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 20, 40)
    middle = resize(ramp, 20, 20, "nearest-exact", "center")
    assert torch.equal(middle, ramp[..., 10:30])


@pytest.mark.parametrize(("width", "height", "size"), [(0, 0, (40, 20)), (20, 0, (20, 10)), (0, 40, (80, 40))])
def test_a_side_of_zero_follows_from_the_other(width, height, size):
    (image,) = call("ImageScale", image=torch.zeros(1, 20, 40, 3), width=width, height=height)
    assert (image.shape[2], image.shape[1]) == size
