"""A ComfyUI MODEL as the engine's LatentModel.

ComfyUI's models take variance-exploding latents `x_0 + sigma eps` and return x_0; the engine's latents are variance
preserving and it asks for eps. With x = sqrt(abar) x_0 + sqrt(1 - abar) eps and sigma^2 = (1 - abar) / abar,
`x_ve = x sqrt(1 + sigma^2)` and `eps = (x_ve - x_0) / sigma`, whatever the network was trained to predict.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...core.conditions import check_whole
from ...core.lora import LowRankDeltas
from ...core.protocols import AttentionRule, Condition, Site
from ...core.recompute import recomputing
from ...core.schedule import NoiseSchedule
from ..reading import check_features, check_rows
from . import autograd, guidance, lora, tiles, unet

PIXELS = 8
"""Image pixels for each latent, for networks that are told the size of the picture (SDXL)."""


class ComfyModel:
    """A ModelPatcher. What each method promises: core's LatentModel. Nothing of the host's model is changed.

    Our patches travel in each call's own `transformer_options`; hooks live as long as one call.
    """

    def __init__(self, native: Any) -> None:
        self.native = native
        self.schedule = schedule_of(native.get_model_object("model_sampling"))
        self._rule: AttentionRule | None = None
        self._taps: list[tuple[tuple[str, ...], dict[str, Tensor]]] = []
        self._differentiable = False
        self._low_memory = False

    @property
    def latent_channels(self) -> int:
        return self.native.model.latent_format.latent_channels

    @property
    def device(self) -> torch.device:
        return self.native.load_device

    @property
    def dtype(self) -> torch.dtype:
        return self.native.model.manual_cast_dtype or self.native.model_dtype()

    def scale(self, raw: Tensor) -> Tensor:
        """A LATENT wire's samples -> scaled latents."""
        return self.native.model.process_latent_in(raw)

    def unscale(self, latent: Tensor) -> Tensor:
        """Scaled latents -> a LATENT wire's samples."""
        return self.native.model.process_latent_out(latent)

    def predict_noise(
        self, x: Tensor, t: Tensor, condition: Condition, *, guidance_embedding: Tensor | None = None
    ) -> Tensor:
        if guidance_embedding is not None and guidance.projection_of(self.native) is None:
            raise ValueError("guidance_embedding: this network has no guidance input (no time_embedding.cond_proj)")
        check_whole(condition)
        if self._taps:
            check_features(tiles.tiles_of(self.native), x)
        if self._differentiable:
            x, condition = autograd.thawed(x), _thawed(condition)
        t = torch.as_tensor(t, device=x.device).expand(x.shape[0])
        sigma = self.schedule.sigma(t).to(self.device, torch.float32)
        column = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        x_ve = x.to(self.device, torch.float32) * (1 + column**2).sqrt()
        base = self._load(x_ve, condition)
        with ExitStack() as context:
            if not self._differentiable:
                context.enter_context(torch.no_grad())  # the host's parameters ask for gradients
            self._attach(context, base)
            if self._differentiable or self._taps:
                context.enter_context(autograd.answered(base.diffusion_model))
            if self._differentiable and "control" in condition.extras:
                context.enter_context(autograd.own_inputs(unet.skip_readers(unet.unet_of(base))))
            if self._low_memory:
                context.enter_context(recomputing(unet.units_of(base)))
            omega = None if guidance_embedding is None else torch.as_tensor(guidance_embedding).expand(x.shape[0])
            x_0 = self._denoise(base, x_ve, sigma, t, condition, omega)
        return ((x_ve - x_0) / column).to(x)

    def _denoise(
        self, base: Any, x_ve: Tensor, sigma: Tensor, t: Tensor, condition: Condition, omega: Tensor | None
    ) -> Tensor:
        """ComfyUI's own denoiser for one condition: x_0 from the variance-exploding latent."""
        options = self._options(base, sigma, t, omega, condition)
        inputs = {name: value.cond for name, value in self._conditions(base, x_ve, condition).items()}
        control = condition.extras.get("control")
        if control is not None:
            inputs["control"] = self._control(control, base, x_ve, sigma, inputs, options)
        inputs["transformer_options"] = options
        wrapper = self.native.model_options.get("model_function_wrapper")
        if wrapper is not None:
            call = {"input": x_ve, "timestep": sigma, "c": inputs, "cond_or_uncond": options["cond_or_uncond"]}
            return wrapper(base.apply_model, call)
        return base.apply_model(x_ve, sigma, **inputs)

    def _control(self, control: Any, base: Any, x_ve: Tensor, sigma: Tensor, inputs: Any, options: Any) -> Any:
        """The residuals of a ControlNet that the condition carries."""
        each = control
        while self._differentiable and each is not None:
            hint = getattr(each, "cond_hint_original", None)
            check_rows("conditioning", 1 if hint is None else hint.shape[0], x_ve.shape[0])
            each = each.previous_controlnet
        control.pre_run(base, base.model_sampling.percent_to_sigma)
        try:
            return control.get_control(x_ve, sigma, inputs, 1, options)
        finally:
            control.cleanup()

    def _load(self, x_ve: Tensor, condition: Condition) -> Any:
        """The BaseModel on its device, through the host's memory manager, with whatever else the condition needs."""
        needed = self.native.memory_required(list(x_ve.shape))
        models = [self.native, *self.native.get_nested_additional_models()]
        control = condition.extras.get("control")
        if control is not None:
            models += control.get_models()
            needed += control.inference_memory_requirements(self.dtype)
        comfy.model_management.load_models_gpu(
            models,
            memory_required=needed * 2 if self._differentiable else needed,
            force_full_load=self._differentiable,
        )
        base = self.native.model
        if self._differentiable:
            autograd.thaw(base)
            for patcher in () if control is None else control.get_models():
                autograd.thaw(patcher.model)
        return base

    def _conditions(self, base: Any, x_ve: Tensor, condition: Condition) -> dict[str, Any]:
        """The network's inputs made from the condition: the embedding, and the second one of SDXL."""
        batch = x_ve.shape[0]
        for name, value in (("embedding", condition.embedding), ("pooled", condition.pooled)):
            if value is not None and value.shape[0] not in (1, batch):
                raise ValueError(
                    f"condition.{name}: expected 1 or {batch} rows for {batch} latents, got {value.shape[0]}"
                )
        known: dict[str, Any] = {
            "width": x_ve.shape[-1] * PIXELS,
            "height": x_ve.shape[-2] * PIXELS,
            "prompt_type": "positive",
            # Inpainting models look at its shape, where the condition brings no picture.
            "latent_image": torch.zeros_like(x_ve),
            **condition.extras,
            "cross_attn": condition.embedding.to(self.device),
            "device": self.device,
            "noise": x_ve,
        }
        if condition.pooled is not None:
            known["pooled_output"] = condition.pooled.to(self.device)
        elif base.adm_channels:
            raise ValueError("condition: this network needs a pooled prompt embedding; use its own text encoder")
        found = base.extra_conds(**known)
        if self._differentiable and "c_concat" in found:
            check_rows("model", found["c_concat"].cond.shape[0], batch)
        return {name: value.process_cond(batch, area=None) for name, value in found.items()}

    def _options(
        self, base: Any, sigma: Tensor, t: Tensor, omega: Tensor | None, condition: Condition
    ) -> dict[str, Any]:
        """This call's own transformer options: the model's, what ComfyUI's samplers tell patches, and ours."""
        options = {**self.native.model_options["transformer_options"], "sigmas": sigma}
        side = int(condition.extras.get("prompt_type") == "negative")
        options |= {"cond_or_uncond": [side], "uuids": [uuid.uuid4()]}
        wrappers = {kind: dict(by_key) for kind, by_key in self.native.wrappers.items()}
        if t.is_floating_point() and _counts_timesteps(base.model_sampling):
            wrappers.setdefault(WrappersMP.DIFFUSION_MODEL, {})["velatura.timesteps"] = [_exact_timesteps(t)]
        projection = guidance.projection_of(self.native)
        if omega is not None and projection is not None:
            wrappers[WrappersMP.DIFFUSION_MODEL][guidance.KEY] = [guidance.Guidance(projection, omega)]
        options["wrappers"] = wrappers
        if self._rule is not None:
            present = options.get("patches_replace", {})
            options["patches_replace"] = unet.replacements(unet.sites_of(unet.unet_of(base)), self._rule, present)
        if self._differentiable:
            options["optimized_attention_override"] = autograd.differentiable_attention
            options["patches"] = autograd.writing_patches(options.get("patches", {}))
        return options

    def _attach(self, hooks: ExitStack, base: Any) -> None:
        """Hooks for the open taps, for the length of one call."""
        if not self._taps:
            return
        modules = {place.name: place.module for place in unet.places_of(unet.unet_of(base))}
        for names, seen in self._taps:
            for name in names:
                hooks.callback(modules[name].register_forward_hook(_keeper(name, seen)).remove)

    def places(self) -> tuple[str, ...]:
        return tuple(place.name for place in unet.places_of(unet.unet_of(self.native.model)))

    def sites(self) -> tuple[Site, ...]:
        return tuple(site for site, _ in unet.sites_of(unet.unet_of(self.native.model)))

    def layers(self) -> dict[str, nn.Module]:
        return unet.layers_of(self.native.model)

    @contextmanager
    def taps(self, *places: str) -> Iterator[dict[str, Tensor]]:
        known = self.places()
        for place in places:
            if place not in known:
                raise ValueError(f"taps: no place {place!r} in this network; it has {', '.join(known)}")
        tap = (places, dict[str, Tensor]())
        self._taps = [*self._taps, tap]
        try:
            yield tap[1]
        finally:
            self._taps = [other for other in self._taps if other is not tap]

    @contextmanager
    def attention(self, rule: AttentionRule) -> Iterator[None]:
        self.sites()  # refuses a network without the sites now, not in the middle of sampling
        before, self._rule = self._rule, rule
        try:
            yield
        finally:
            self._rule = before

    @contextmanager
    def differentiable(self, *, low_memory: bool = False) -> Iterator[None]:
        before = self._differentiable, self._low_memory
        self._differentiable, self._low_memory = True, low_memory
        try:
            with autograd.gradients():
                yield
        finally:
            self._differentiable, self._low_memory = before

    def with_lora(self, deltas: LowRankDeltas, strength: float = 1.0) -> ComfyModel:
        other = copy.copy(self)
        other.native = lora.with_model_lora(self.native, deltas, strength)
        return other


def schedule_of(sampling: Any) -> NoiseSchedule:
    """The noise schedule of ComfyUI's model sampling. ValueError if the model is not a variance-preserving one."""
    preserving = isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(
        sampling, comfy.model_sampling.IMG_TO_IMG
    )
    if not preserving or sampling.sigma_data != 1:
        raise ValueError(
            "model: expected a diffusion model with a variance-preserving schedule (Stable Diffusion 1, 2, XL), got "
            f"{', '.join(base.__name__ for base in type(sampling).__bases__)}"
        )
    return NoiseSchedule.from_sigmas(sampling.sigmas.to("cpu", torch.float64))


def _keeper(name: str, seen: dict[str, Tensor]) -> Any:
    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        seen[name] = output

    return keep


def _counts_timesteps(sampling: Any) -> bool:
    """Whether the schedule's places are the network's timesteps. Those of LCM's 50 levels are not."""
    discrete = isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete)
    return discrete and len(sampling.sigmas) == sampling.num_timesteps


def _exact_timesteps(t: Tensor) -> Any:
    """ComfyUI turns sigma into the nearest whole timestep; this gives the network the one that was asked for."""

    def wrapper(run: Any, x: Tensor, timesteps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return run(x, t.to(timesteps), *args, **kwargs)

    return wrapper


def _thawed(condition: Condition) -> Condition:
    return Condition(
        autograd.thawed(condition.embedding), autograd.thawed(condition.pooled), autograd.thawed(condition.extras)
    )
