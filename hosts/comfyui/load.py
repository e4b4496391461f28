"""A diffusers pipeline folder of the Stable Diffusion 1 family, of any size, as native MODEL, CLIP and VAE.

CheckpointLoaderSimple recognises the published sizes only. These objects are of ComfyUI's own classes, so its stock
nodes run on them.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.diffusers_convert
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..preview import colours
from . import codec, guidance

Weights = dict[str, Tensor]


def load_folder(folder: str | os.PathLike[str]) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE. FileNotFoundError or ValueError names the file that is missing, broken or of another family."""
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder}: expected a diffusers model folder, found no model_index.json there")
    return load_model(folder), load_clip(folder), load_vae(folder)


def latent_format(folder: Path) -> Any:
    """The folder's latents as ComfyUI describes them."""
    config = _config(folder / "vae")
    described = comfy.latent_formats.SD15(config.get("scaling_factor", 0.18215))
    described.latent_channels = config["latent_channels"]
    described.taesd_decoder_name = None  # the preview decoder of Stable Diffusion 1 would show noise
    known = colours(folder, config["latent_channels"])
    if known is not None:
        described.latent_rgb_factors, described.latent_rgb_factors_bias = known
    return described


def load_model(folder: Path) -> Any:
    """The folder's UNet and schedule as a ModelPatcher."""
    config = FolderModel(unet_config(_config(folder / "unet")), latent_format(folder))
    config.scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    config.sampling_settings = sampling_settings(config.scheduler)
    theirs = _weights(folder / "unet", "diffusion_pytorch_model.safetensors")
    # A guidance-distilled network; ComfyUI has no place for this tensor.
    projection = theirs.pop("time_embedding.cond_proj.weight", None)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    unknown = sorted(set(theirs) - set(names))
    if unknown:
        raise ValueError(f"{folder / 'unet'}: {len(unknown)} tensors are of another network, {unknown[0]} among them")
    device = management.get_torch_device()
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(theirs), weight_dtype=comfy.utils.weight_dtype(theirs)
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = config.get_model(theirs)
    ours = {names[name]: value for name, value in theirs.items()}
    _fill(model.diffusion_model, ours, folder / "unet")
    offload = management.unet_offload_device()
    patcher = comfy.model_patcher.ModelPatcher(model.to(offload), load_device=device, offload_device=offload)
    return patcher if projection is None else guidance.with_guidance(patcher, projection, None)


class FolderModel(comfy.supported_models_base.BASE):
    """What ComfyUI's model classes ask of a model family; here one folder is a family of its own."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012  (the host's own class attribute)
    memory_usage_factor = 1.0
    scheduler: Mapping[str, Any]

    def __init__(self, unet_config: dict[str, Any], latent_format: Any) -> None:
        super().__init__(unet_config)
        self.latent_format = latent_format

    def model_type(self, state_dict: Weights, prefix: str = "") -> Any:
        kinds = {
            "epsilon": comfy.model_base.ModelType.EPS,
            "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
        }
        prediction = self.scheduler.get("prediction_type", "epsilon")
        if prediction not in kinds:
            raise ValueError(f"scheduler: expected prediction_type epsilon or v_prediction, got {prediction!r}")
        return kinds[prediction]


def sampling_settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """ComfyUI's settings of a diffusers scheduler configuration."""
    names = {"scaled_linear": "linear", "linear": "sqrt_linear"}
    kind = scheduler.get("beta_schedule", "scaled_linear")
    if kind not in names or scheduler.get("trained_betas") is not None:
        raise ValueError(f"scheduler: expected beta_schedule scaled_linear or linear, got {kind!r}")
    return {
        "beta_schedule": names[kind],
        "linear_start": scheduler.get("beta_start", 0.00085),
        "linear_end": scheduler.get("beta_end", 0.012),
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "zsnr": bool(scheduler.get("rescale_betas_zero_snr", False)),
    }


def unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """ComfyUI's UNetModel arguments for a diffusers UNet2DConditionModel configuration."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    levels = len(widths)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    heads = _per_level(config.get("num_attention_heads") or config["attention_head_dim"], levels)
    down = [d if "CrossAttn" in kind else 0 for d, kind in zip(depths, config["down_block_types"], strict=True)]
    up = [d if "CrossAttn" in kind else 0 for d, kind in zip(depths, reversed(config["up_block_types"]), strict=True)]
    per_head = {width // count for width, count in zip(widths, heads, strict=True)}
    fixed = {"flip_sin_to_cos": True, "freq_shift": 0, "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5}
    fixed |= {"mid_block_scale_factor": 1, "downsample_padding": 1, "center_input_sample": False}
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(f"unet: expected {name} {value}, got {config[name]}")
    if len(per_head) > 1 and len(set(heads)) > 1:
        raise ValueError("unet: expected one number of heads, or of channels in a head, at all levels")
    return {
        "image_size": config.get("sample_size") or 64,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [_multiple(width, widths[0]) for width in widths],
        "num_res_blocks": [layers] * levels,
        "transformer_depth": [depth for depth in down for _ in range(layers)],
        "transformer_depth_output": [depth for depth in up for _ in range(layers + 1)],
        "transformer_depth_middle": depths[-1],
        "context_dim": config["cross_attention_dim"],
        "num_heads": heads[0] if len(per_head) > 1 else -1,
        "num_head_channels": -1 if len(per_head) > 1 else per_head.pop(),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": bool(config.get("use_linear_projection", False)),
        "adm_in_channels": None,
    }


class Ratio(float):
    """A channel multiple that is not whole. ComfyUI takes its product with `model_channels` for a width."""

    def __mul__(self, channels: float) -> int:  # type: ignore[override]
        return round(float(self) * channels)

    __rmul__ = __mul__


def _multiple(width: int, first: int) -> int | Ratio:
    return width // first if width % first == 0 else Ratio(width / first)


def _per_level(value: Any, levels: int) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value] * levels


def load_vae(folder: Path) -> Any:
    """The folder's autoencoder as a VAE that knows its latent format."""
    config = _config(folder / "vae")
    widths = config["block_out_channels"]
    if len(widths) != 4 or "num_vq_embeddings" in config:
        raise ValueError(f"{folder / 'vae'}: expected an AutoencoderKL of 4 levels (a factor of 8), as ComfyUI's are")
    channels = config["latent_channels"]
    layout = {
        "double_z": True,
        "z_channels": channels,
        "resolution": config.get("sample_size", 512),
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [_multiple(width, widths[0]) for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    theirs = _weights(folder / "vae", "diffusion_pytorch_model.safetensors")
    weights = comfy.diffusers_convert.convert_vae_state_dict(theirs)
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": layout, "embed_dim": channels}})
    _check(set(weights), set(vae.first_stage_model.state_dict()), folder / "vae")
    vae.latent_channels = channels
    setattr(vae, codec.FORMAT, latent_format(folder))
    return vae


def load_clip(folder: Path) -> Any:
    """The folder's text encoder and tokenizer as a CLIP."""
    config = _config(folder / "text_encoder")
    tokenizer = functools.partial(
        comfy.sd1_clip.SDTokenizer,
        tokenizer_path=str(folder / "tokenizer"),
        max_length=config["max_position_embeddings"],
        embedding_size=config["hidden_size"],
    )
    target = comfy.supported_models_base.ClipTarget(
        functools.partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=tokenizer),
        functools.partial(comfy.sd1_clip.SD1ClipModel, clip_model=functools.partial(FolderClip, config)),
    )
    theirs = _weights(folder / "text_encoder", "model.safetensors")
    # transformers 5 leaves out the prefix that its older versions and ComfyUI have.
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in theirs.items()}
    clip = comfy.sd.CLIP(target, model_options={"dtype": comfy.utils.weight_dtype(weights)})
    # ComfyUI's class has a projection that Stable Diffusion 1 has not, and does not initialise it.
    weights.setdefault("text_projection.weight", torch.eye(config["hidden_size"]))
    _fill(clip.cond_stage_model.clip_l.transformer, weights, folder / "text_encoder")
    return clip


class FolderClip(comfy.sd1_clip.SDClipModel):
    """CLIP's text transformer with the folder's sizes, vocabulary and special tokens."""

    def __init__(self, config: Mapping[str, Any], **kwargs: Any) -> None:
        end = config["eos_token_id"]
        super().__init__(
            max_length=config["max_position_embeddings"],
            textmodel_json_config={"hidden_act": "quick_gelu", **config},
            special_tokens={"start": config["bos_token_id"], "end": end, "pad": end},
            return_projected_pooled=False,
            **kwargs,
        )
        old = self.transformer.get_input_embeddings()  # sized for CLIP's 49,408 tokens whatever the configuration says
        self.transformer.set_input_embeddings(
            self.operations.Embedding(
                config["vocab_size"], config["hidden_size"], dtype=old.weight.dtype, device=old.weight.device
            )
        )


def _fill(network: torch.nn.Module, weights: Weights, where: Path) -> None:
    _check(set(weights), set(network.state_dict()), where)
    network.load_state_dict(weights, strict=False)


def _check(given: set[str], expected: set[str], where: Path) -> None:
    # Older transformers saved the positions 0, 1, 2, ... as well.
    given = {name for name in given if not name.endswith("position_ids")}
    missing, unknown = sorted(expected - given), sorted(given - expected)
    if missing or unknown:
        raise ValueError(
            f"{where}: {len(missing)} tensors are missing and {len(unknown)} unknown, "
            f"{(missing + unknown)[0]} among them"
        )


def _config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: this file of the model folder is missing") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def _weights(folder: Path, name: str) -> Weights:
    path = folder / name
    if not path.is_file():
        found = sorted(other.name for other in folder.glob("*") if other.suffix in (".bin", ".ckpt", ".pt"))
        hint = f"; {found[0]} is a pickle, which is not loaded: convert it to safetensors" if found else ""
        raise FileNotFoundError(f"{path}: this file of the model folder is missing{hint}")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); download or copy it again") from None
