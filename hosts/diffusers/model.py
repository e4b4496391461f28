"""A diffusers UNet as the engine's LatentModel."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...core.conditions import check_whole
from ...core.frame_patch import FramePatch
from ...core.guidance import check_projection, guidance_scale_embedding
from ...core.layer_patch import LayerPatch
from ...core.lora import LowRankDeltas, diffusers_name
from ...core.protocols import AttentionRule, Condition, Site
from ...core.recompute import recomputing
from ...core.schedule import NoiseSchedule, Prediction
from ...core.shared_attention import check_free, layer_loras, per_layer, shared_attention
from ...core.tiles import Tiles, Window, tiled
from ..preview import Colours
from ..reading import check_features
from .layer_patch import FrameStage, Stage, framed, running, staged
from .merge import merged, twin_of


class DiffusersModel:
    """UNet2DConditionModel (SD1.5, SDXL, Sprites) and its schedule. What each method promises: core's LatentModel."""

    def __init__(
        self,
        unet: nn.Module,
        schedule: NoiseSchedule,
        prediction: Prediction = "epsilon",
        *,
        scaling_factor: float = 0.18215,
        shift_factor: float = 0.0,
        omega: float | None = None,
        colours: Colours | None = None,
    ) -> None:
        self.unet: Any = unet.eval().requires_grad_(False)
        self.schedule = schedule
        self.prediction: Prediction = prediction
        # Its autoencoder's, as in DiffusersCodec: a sampler node gets a raw LATENT and no VAE.
        self.scaling_factor, self.shift_factor = scaling_factor, shift_factor
        self.colours = colours  # of its latents, for previews
        # The guidance embedding where the caller gives none, as no sampler does.
        self.omega = omega
        self._low_memory = False
        self._stages: tuple[Stage | FrameStage, ...] = ()
        self._tiles: Tiles | None = None
        self._tapped = 0
        self._layers: tuple[Sequence[LowRankDeltas | None], Sequence[float]] | None = None

    def scale(self, raw: Tensor) -> Tensor:
        """A LATENT wire's samples -> scaled latents."""
        return (raw - self.shift_factor) * self.scaling_factor

    def unscale(self, latent: Tensor) -> Tensor:
        """Scaled latents -> a LATENT wire's samples."""
        return latent / self.scaling_factor + self.shift_factor

    @property
    def latent_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def predict_noise(
        self, x: Tensor, t: Tensor, condition: Condition, *, guidance_embedding: Tensor | None = None
    ) -> Tensor:
        check_whole(condition)
        if self._tapped:
            check_features(self._tiles, x)
        t = torch.as_tensor(t, device=self.device).expand(x.shape[0])
        inputs = {
            "encoder_hidden_states": _rows(condition.embedding, len(x), "embedding").to(self.device, self.dtype),
            "timestep_cond": self._guidance(guidance_embedding, len(x)),
            "added_cond_kwargs": self._added(x, condition),
        }

        def predict(part: Tensor, window: Window | None) -> Tensor:
            stages = running(self._stages, self.unet, self.schedule, x, t, window)
            with stages, self._drawn_together(), recomputing(self._units() if self._low_memory else ()):
                return self.unet(part.to(self.device, self.dtype), t, **inputs, return_dict=False)[0]

        output = predict(x, None) if self._tiles is None else tiled(predict, x, self._tiles)
        return self.schedule.to_epsilon(output.to(x), x, t.to(x.device), self.prediction)

    @contextmanager
    def _drawn_together(self) -> Iterator[None]:
        """While open, the rows are layers, if the model was made so."""
        if self._layers is None:
            yield
            return
        model: Any = self
        with self.attention(shared_attention(len(self._layers[0]))), layer_loras(model, *self._layers):
            yield

    def check_batch(self, count: int) -> None:
        """ValueError unless a prompt's latents are whole samples, of all the layers that this model draws together:
        several prompts' rows may run as one batch."""
        if count % self.rows:
            raise ValueError(
                f"latent_image: expected a batch in multiples of {self.rows}, one latent for each layer that the "
                f"model draws together, got {count}"
            )

    @property
    def rows(self) -> int:
        """How many rows of a batch are one sample: more than 1 where the model draws layers together."""
        frames = [each.patch.frames for each in self._stages if isinstance(each, FrameStage)]
        return max(*frames, len(self._layers[0]) if self._layers else 1, 1)

    def with_layers(self, loras: Sequence[LowRankDeltas | None], strengths: Sequence[float]) -> DiffusersModel:
        """A new model whose rows are (sample, layer). ValueError if a LoRA does not fit."""
        check_free(self.rows)
        per_layer(self.layers(), loras, strengths, self.device)  # refuses now, not in the middle of sampling
        other = copy.copy(self)
        other._layers = loras, strengths
        return other

    def _guidance(self, omega: Tensor | None, batch: int) -> Tensor | None:
        width = self.unet.config.time_cond_proj_dim
        if omega is not None and width is None:
            raise ValueError("guidance_embedding: this network has no guidance input (no time_embedding.cond_proj)")
        if omega is None and self.omega is None:
            return None
        omegas = torch.as_tensor(self.omega if omega is None else omega, dtype=torch.float32)
        return guidance_scale_embedding(omegas.expand(batch), width).to(self.device, self.dtype)

    def _added(self, x: Tensor, condition: Condition) -> dict[str, Tensor] | None:
        """SDXL's second condition: the pooled prompt, and six sizes in pixels."""
        if self.unet.config.addition_embed_type != "text_time":
            return None
        if condition.pooled is None:
            raise ValueError("condition: this network needs a pooled prompt embedding; use its own text encoder")
        batch, extras = x.shape[0], condition.extras
        height, width = (extras.get(k, n * 8) for k, n in (("height", x.shape[-2]), ("width", x.shape[-1])))
        sizes = [height, width, extras.get("crop_h", 0), extras.get("crop_w", 0)]
        sizes += [extras.get("target_height", height), extras.get("target_width", width)]
        return {
            "text_embeds": _rows(condition.pooled, batch, "pooled").to(self.device, self.dtype),
            "time_ids": torch.tensor([sizes], device=self.device, dtype=self.dtype).expand(batch, -1),
        }

    def places(self) -> tuple[str, ...]:
        return tuple(self._places())

    def sites(self) -> tuple[Site, ...]:
        return tuple(self._attentions())

    def _places(self) -> dict[str, nn.Module]:
        """The module whose output is each place, in running order."""
        found: dict[str, nn.Module] = {}
        for side, blocks in (("down", self.unet.down_blocks), ("mid", None), ("up", self.unet.up_blocks)):
            if blocks is None:
                found["mid"] = self.unet.mid_block
                continue
            for level, block in enumerate(blocks):
                layers = getattr(block, "attentions", block.resnets)
                found |= {f"{side}.{level}.{i}": layer for i, layer in enumerate(layers)}
                found[f"{side}.{level}"] = block
        return found

    def _attentions(self) -> dict[Site, Any]:
        """The Attention module of each site, in running order."""
        found: dict[Site, Any] = {}
        for place, module in self._places().items():
            layer: Any = module
            if place == "mid" and getattr(layer, "attentions", None):
                layer = layer.attentions[0]
            for depth, block in enumerate(getattr(layer, "transformer_blocks", ())):
                found[Site(place, depth, "self")] = block.attn1
                if block.attn2 is not None:
                    found[Site(place, depth, "cross")] = block.attn2
        return found

    def layers(self) -> dict[str, nn.Module]:
        return {
            name.replace(".", "_"): module
            for name, module in self.unet.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }

    @contextmanager
    def taps(self, *places: str) -> Iterator[dict[str, Tensor]]:
        known = self._places()
        for place in places:
            if place not in known:
                raise ValueError(f"taps: no place {place!r} in this network; it has {', '.join(known)}")
        seen: dict[str, Tensor] = {}

        def keep(place: str) -> Any:
            # Blocks return their skips beside the hidden state, and transformers a tuple of one.
            return lambda _module, _args, out: seen.update({place: out if isinstance(out, Tensor) else out[0]})

        self._tapped += 1
        try:
            with ExitStack() as stack:
                for place in places:
                    stack.callback(known[place].register_forward_hook(keep(place)).remove)
                yield seen
        finally:
            self._tapped -= 1

    @contextmanager
    def attention(self, rule: AttentionRule) -> Iterator[None]:
        attentions = self._attentions()
        before = {site: module.processor for site, module in attentions.items()}
        try:
            for site, module in attentions.items():
                module.processor = _RuleProcessor(site, rule)
            yield
        finally:
            for site, module in attentions.items():
                module.processor = before[site]

    @contextmanager
    def differentiable(self, *, low_memory: bool = False) -> Iterator[None]:
        before, self._low_memory = self._low_memory, low_memory
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            self._low_memory = before

    def _units(self) -> list[nn.Module]:
        """What is recomputed as a whole."""
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D

        return [module for module in self.unet.modules() if isinstance(module, BasicTransformerBlock | ResnetBlock2D)]

    def with_lora(self, deltas: LowRankDeltas, strength: float = 1.0) -> DiffusersModel:
        layers = self.unet.config.layers_per_block
        names = {name: diffusers_name(name, layers) for name in deltas.of("unet")}
        return self.with_unet(merged(self.unet, {names[n]: low for n, low in deltas.of("unet").items()}, strength))

    def with_guidance(self, projection: Tensor, omega: float) -> DiffusersModel:
        """A new model whose network takes omega through `projection` [C, W], and this omega where it is given none."""
        check_projection(projection, self.unet.time_embedding.linear_1.in_features)
        twin: Any = twin_of(self.unet)
        weight = nn.Parameter(projection.to(self.device, self.dtype), requires_grad=False)
        layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
        layer.weight = weight
        twin.time_embedding.cond_proj = layer
        twin.register_to_config(time_cond_proj_dim=weight.shape[1])
        other = self.with_unet(twin)
        other.omega = omega
        return other

    def with_layer_patch(
        self, patch: LayerPatch, strength: float, start: float, end: float, given: Tensor | None
    ) -> DiffusersModel:
        """A new model with the patch; `given` is unscaled. ValueError if it does not fit."""
        if given is not None and any(isinstance(each, Stage) and each.given is not None for each in self._stages):
            raise ValueError("model: another patch with a given latent is on it already; one is possible")
        channels = self.latent_channels
        if given is not None:
            given = self.scale(given.to(self.device, torch.float32))
        unet, stage = staged(self.unet, self.schedule, channels, patch, strength, (start, end), given)
        other = self.with_unet(unet)
        other._stages = (*self._stages, stage) if stage else self._stages
        return other

    def with_frame_patch(
        self, patch: FramePatch, strength: float, start: float, end: float, image: Tensor | None
    ) -> DiffusersModel:
        """A new model with an SD 1.5 patch. ValueError if it does not fit."""
        if patch.frames > 1:
            check_free(self.rows)
        other = copy.copy(self)
        stage = framed(self.unet, self.schedule, patch, strength, (start, end), image)
        other._stages = (*self._stages, stage)
        return other

    def with_tiles(self, tiles: Tiles) -> DiffusersModel:
        """A new model that computes larger latents in tiles. ValueError if it does already."""
        if self._tiles is not None:
            raise ValueError("model: it is computed in tiles already; set tile to 0 in one of the two nodes")
        other = copy.copy(self)
        other._tiles = tiles
        return other

    def with_unet(self, unet: nn.Module) -> DiffusersModel:
        """The same model around another network."""
        other = copy.copy(self)
        other.unet = unet.eval().requires_grad_(False)
        return other


class _RuleProcessor:
    """diffusers' attention computed through a rule; the module's own projections, bias and heads stay."""

    def __init__(self, site: Site, rule: AttentionRule) -> None:
        self.site, self.rule = site, rule

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads = [x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v)]  # B N C -> B H N D
            out = nn.functional.scaled_dot_product_attention(*heads, attn_mask=attention_mask)
            return out.transpose(1, 2).flatten(2)

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        return attn.to_out[1](attn.to_out[0](self.rule(self.site, q, k, v, attend)))


def _rows(value: Tensor, batch: int, name: str) -> Tensor:
    """One row for each sample: [1, ...] is repeated, [batch, ...] is taken as it is."""
    if value.shape[0] not in (1, batch):
        raise ValueError(f"condition.{name}: expected 1 or {batch} rows for {batch} latents, got {value.shape[0]}")
    return value.expand(batch, *value.shape[1:])


def schedule_of(config: Mapping[str, Any]) -> tuple[NoiseSchedule, Prediction]:
    """Schedule and prediction type of a diffusers scheduler configuration."""
    steps = config.get("num_train_timesteps", 1000)
    start, end, kind = config.get("beta_start", 0.00085), config.get("beta_end", 0.012), config.get("beta_schedule")
    if config.get("trained_betas") is not None:
        schedule = NoiseSchedule.from_betas(torch.tensor(config["trained_betas"], dtype=torch.float64))
    elif kind in ("scaled_linear", None):
        schedule = NoiseSchedule.scaled_linear(start, end, steps)
    elif kind == "linear":
        schedule = NoiseSchedule.linear(start, end, steps)
    else:
        raise ValueError(f"scheduler: expected beta_schedule scaled_linear or linear, got {kind!r}")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"scheduler: expected prediction_type epsilon, v_prediction or sample, got {prediction!r}")
    if config.get("rescale_betas_zero_snr"):
        schedule = schedule.rescaled_to_zero_snr()
    return schedule, prediction
