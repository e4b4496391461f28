"""Model files: folders and single files that load, and files that cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from velatura.hosts.diffusers import checkpoints, single_file
from velatura.hosts.diffusers.build import new_autoencoder, new_text_encoder, new_unet
from velatura.hosts.diffusers.samplers import SAMPLERS
from velatura.hosts.diffusers.sampling import normal_noise, sample
from velatura.hosts.diffusers.sigmas import NoiseLevels, sigmas_for

from .ldm import single_file as as_single_file


def picture(model, clip, codec, side=16, steps=2):
    """A few steps and a decode: everything that a loaded model must do."""
    prompts = []
    for text in ("a red ball", ""):
        condition = clip.encode([text])
        prompts.append([[condition.embedding, {"pooled_output": condition.pooled}]])
    latent = torch.zeros(1, model.latent_channels, side, side)
    sigmas = sigmas_for(NoiseLevels.of(model.schedule), "normal", steps)
    done, _ = sample(model, SAMPLERS["euler"], sigmas, *prompts, 4.0, latent, normal_noise(latent.shape, 0))
    with torch.no_grad():
        return codec.decode(codec.scale(done))


@pytest.fixture
def folder(random_folder, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(random_folder, tmp_path / "model"))


def test_a_folder_makes_pictures(sprites_folder):
    model, clip, codec = checkpoints.load(sprites_folder)
    assert picture(model, clip, codec).shape == (1, 3, 128, 128)
    assert model.dtype == torch.float32 or model.device.type == "cuda"
    assert (model.scaling_factor, model.shift_factor) == (codec.scaling_factor, codec.shift_factor)


def test_a_folder_of_half_precision_files_is_found(folder):
    expected = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    for part in ("unet", "vae", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    model, _, _ = checkpoints.load_folder(folder)
    torch.testing.assert_close(model.unet.conv_in.weight, expected.float())


def test_a_truncated_file_is_named(folder):
    file = next((folder / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file}: not a whole safetensors file"):
        checkpoints.load_folder(folder)


@pytest.mark.parametrize("content", [b"", b"\0" * 6, b"\xff" * 4000])
def test_a_file_that_is_no_safetensors_is_named(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file}: not a whole safetensors file"):
        checkpoints.load(file)


def test_a_pickle_is_not_opened(tmp_path, folder):
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"model.ckpt: expected a .safetensors file.*Convert it once"):
        checkpoints.load(file)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.bin: expected a .safetensors file"):
        checkpoints.load(folder)


def test_missing_files_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors: there is no such file"):
        checkpoints.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model_index.json: not found"):
        checkpoints.load(tmp_path)
    next((folder / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"unet: expected diffusion_pytorch_model.safetensors"):
        checkpoints.load(folder)


def test_a_broken_or_foreign_index_is_named(folder):
    index = folder / "model_index.json"
    said = json.loads(index.read_text())
    index.write_text(json.dumps(said | {"unet": ["diffusers", "FluxTransformer2DModel"]}))
    with pytest.raises(ValueError, match=r"unet is FluxTransformer2DModel, expected one of"):
        checkpoints.load_folder(folder)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"model_index.json: not valid JSON"):
        checkpoints.load_folder(folder)


TINY = {
    "name": "tiny",
    "unet": {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 32, "attention_head_dim": 4},
    "vae": {**single_file._VAE, "block_out_channels": [32, 32, 32, 32], "scaling_factor": 0.18215},
    "text": [
        (
            {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            | {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 99},
            "cond_stage_model.transformer.",
        )
    ],
}


@pytest.fixture(scope="module")
def tiny():
    """Networks of SD1.5's shape and a hundredth of its size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, vae = new_unet(TINY["unet"]), new_autoencoder(TINY["vae"])
        return unet.eval(), vae.eval(), new_text_encoder(TINY["text"][0][0]).eval()


def test_a_single_file_holds_the_same_networks(tiny):
    unet, vae, encoder = tiny
    again, vae_again, encoder_again = single_file.build(TINY, as_single_file(*tiny))
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)
    ids = torch.randint(0, 98, (1, 7), generator=generator)
    with torch.no_grad():
        assert torch.equal(again(x, 7, c).sample, unet(x, 7, c).sample)
        assert torch.equal(vae_again.decode(x).sample, vae.decode(x).sample)
        assert torch.equal(encoder_again(ids).last_hidden_state, encoder(ids).last_hidden_state)


def test_a_single_file_without_its_autoencoder_is_refused(tiny):
    weights = {key: value for key, value in as_single_file(*tiny).items() if not key.startswith("first_stage_model")}
    with pytest.raises(ValueError, match=r"weights of its AutoencoderKL are missing"):
        single_file.build(TINY, weights)


def meta(family):
    with torch.device("meta"):
        networks = new_unet(family["unet"]), new_autoencoder(family["vae"]), new_text_encoder(family["text"][0][0])
    return as_single_file(*networks)


def test_families_are_told_apart(tiny):
    sd15 = meta(single_file.SD15)
    assert single_file.family_of(sd15) is single_file.SD15
    assert single_file.family_of(meta(single_file.SDXL)) is single_file.SDXL
    entry = "model.diffusion_model.input_blocks.0.0.weight"
    with pytest.raises(ValueError, match="takes 9 channels"):
        single_file.family_of(sd15 | {entry: torch.empty(320, 9, 3, 3)})
    with pytest.raises(ValueError, match="another width"):
        single_file.family_of(as_single_file(*tiny))
    with pytest.raises(ValueError, match=r"no model.diffusion_model weights"):
        single_file.family_of({"x": torch.zeros(1)})


def test_a_foreign_single_file_is_named(tmp_path):
    save_file({"lora_unet_x.alpha": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors: expected a Stable Diffusion 1.5 or XL checkpoint"):
        checkpoints.load(tmp_path / "other.safetensors")


@pytest.mark.slow
def test_sd15_at_true_size_loads_and_steps(tmp_path, random_folder):
    """2 GB of random half-precision weights; 6 GB of memory."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in meta(single_file.SD15).items():
        small = 0.02 if value.ndim > 1 else 0.0
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32) * small
        is_norm_scale = value.ndim == 1 and key.endswith("weight")
        weights[key] = (noise + is_norm_scale).half()
    save_file(weights, tmp_path / "sd15.safetensors")
    del weights
    shutil.copytree(random_folder / "tokenizer", tmp_path / "tokenizer")
    model, clip, codec = checkpoints.load(tmp_path / "sd15.safetensors")
    assert sum(each.numel() for each in model.unet.parameters()) == 859_520_964
    decoded = picture(model, clip, codec, side=8, steps=1)
    assert decoded.shape == (1, 3, 64, 64) and decoded.isfinite().all()
