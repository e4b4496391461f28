"""Where things are in ComfyUI's UNet, by the engine's names."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import comfy.utils
from comfy.ldm.modules import attention as host_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from torch import Tensor, nn

from ...core.protocols import AttentionRule, Site

Block = tuple[str, int]
"""How ComfyUI names a block to its patches: ("input", 4), ("middle", 0), ("output", 8)."""


class Place(NamedTuple):
    """One named feature: the submodule whose output it is, and the block the submodule belongs to.

    A block is run submodule by submodule, so a hook on the block itself would never fire.
    """

    name: str
    module: Any
    block: Block
    transformer: Any


def unet_of(base: Any) -> UNetModel:
    """The UNet of ComfyUI's BaseModel."""
    unet = base.diffusion_model
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"model: expected a UNet (the Stable Diffusion 1, 2 and XL families), got {type(unet).__name__}. "
            "Load one of those, or the demo model."
        )
    return unet


def names_of(base: Any) -> dict[str, str]:
    """The path in BaseModel's UNet of every module with a weight, by diffusers' module name with underscores for
    dots."""
    there = dict(unet_of(base).named_modules())
    names = comfy.utils.unet_to_diffusers(base.model_config.unet_config)
    return {
        theirs.removesuffix(".weight").replace(".", "_"): ours.removesuffix(".weight")
        for theirs, ours in names.items()
        # ComfyUI's table also names layers that this family lacks.
        if theirs.endswith(".weight") and hasattr(there.get(ours.removesuffix(".weight")), "weight")
    }


def layers_of(base: Any) -> dict[str, nn.Module]:
    """Every linear layer and convolution of BaseModel's UNet, by diffusers' module name with underscores for dots."""
    modules = dict(unet_of(base).named_modules())
    found = {theirs: modules[ours] for theirs, ours in names_of(base).items()}
    return {name: module for name, module in found.items() if isinstance(module, nn.Linear | nn.Conv2d)}


def units_of(base: Any) -> list[nn.Module]:
    """The blocks of BaseModel's UNet that gradient checkpointing recomputes as a whole."""
    kinds = (ResBlock, host_attention.BasicTransformerBlock)
    return [module for module in unet_of(base).modules() if isinstance(module, kinds)]


def skip_readers(unet: UNetModel) -> list[nn.Module]:
    """The modules that read what is also a skip connection. ComfyUI adds a ControlNet's residuals to the skips in
    place, after these have read them and before their backward pass does."""
    blocks: list[Any] = [*unet.input_blocks[1:], *([] if unet.middle_block is None else [unet.middle_block])]
    return [block[0] for block in blocks]


def places_of(unet: UNetModel) -> list[Place]:
    """Every place in the order the network runs them, levels and layers counted as diffusers counts them."""
    found = []
    index = 1  # input block 0 is the first convolution
    for level, layers in enumerate(unet.num_res_blocks):
        for layer in range(layers):
            found.append(_layer(f"down.{level}.{layer}", unet.input_blocks[index], ("input", index)))
            index += 1
        downsampled = level + 1 < len(unet.num_res_blocks)
        last = index if downsampled else index - 1
        found.append(Place(f"down.{level}", unet.input_blocks[last][-1], ("input", last), None))
        index += downsampled
    if unet.middle_block is not None:
        found.append(_layer("mid", unet.middle_block, ("middle", 0)))
    index = 0
    for level, layers in enumerate(reversed(unet.num_res_blocks)):
        for layer in range(layers + 1):
            block = unet.output_blocks[index]
            upsampled = layer == layers and level + 1 < len(unet.num_res_blocks)
            found.append(_layer(f"up.{level}.{layer}", block[:-1] if upsampled else block, ("output", index)))
            index += 1
        found.append(Place(f"up.{level}", unet.output_blocks[index - 1][-1], ("output", index - 1), None))
    return found


def _layer(name: str, modules: Any, block: Block) -> Place:
    transformer = next((m for m in modules if isinstance(m, host_attention.SpatialTransformer)), None)
    return Place(name, modules[-1], block, transformer)


def sites_of(unet: UNetModel) -> list[tuple[Site, Block]]:
    """Every attention in the order the network runs them, with the block ComfyUI knows it by."""
    return [
        (Site(place.name, depth, kind), place.block)
        for place in places_of(unet)
        if place.transformer is not None
        for depth in range(len(place.transformer.transformer_blocks))
        for kind in ("self", "cross")
    ]


Replacement = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


def replacements(
    sites: Iterable[tuple[Site, Block]], rule: AttentionRule, present: Mapping[str, Any]
) -> dict[str, dict[Any, Replacement]]:
    """ComfyUI's `patches_replace` with `rule` at the sites; `present` is what the model already carries there.

    A replacement that is already present (an adapter's, say) becomes the `attend` that the rule receives.
    """
    new = {kind: dict(entries) for kind, entries in present.items()}
    for site, block in sites:
        attention = "attn1" if site.kind == "self" else "attn2"
        entries = new.setdefault(attention, {})
        key = (*block, site.depth)
        entries[key] = _replacement(site, rule, entries.get(key, entries.get(block)))
    return new


def _replacement(site: Site, rule: AttentionRule, present: Replacement | None) -> Replacement:
    def replace(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if present is not None:
                return present(q, k, v, options)
            return host_attention.optimized_attention(
                q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
            )

        if len(q) != options["original_shape"][0]:
            raise ValueError(
                "model: a patch on it cuts attention into tiles (HyperTile), and this node joins the attention of "
                "whole pictures; connect the model from before that patch"
            )
        return rule(site, q, k, v, attend)

    return replace


_OWN_ROWS = ("comfy_extras.nodes_sag",)


def reads_own_rows(present: Mapping[str, Any]) -> bool:
    """Whether a replacement of self attention reads each row's own attention, by what the host calls it."""
    return any(getattr(patch, "__module__", None) in _OWN_ROWS for patch in present.get("attn1", {}).values())


def check_own_rows(present: Mapping[str, Any]) -> None:
    """ValueError if a replacement of self attention does so."""
    if reads_own_rows(present):
        raise ValueError(
            "model: SelfAttentionGuidance reads the attention of each picture by itself, and on this model layers "
            "share it; take it off (PerturbedAttentionGuidance works)"
        )


_OPTIONS = 4  # beside x: timesteps, context, y, control, transformer_options


def options_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The transformer options of a call that a wrapper around the UNet sees, beside its x."""
    return args[_OPTIONS] if len(args) > _OPTIONS else kwargs["transformer_options"]


def with_options(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of such a call with other options."""
    if len(args) > _OPTIONS:
        return (*args[:_OPTIONS], options, *args[_OPTIONS + 1 :]), dict(kwargs)
    return args, {**kwargs, "transformer_options": options}


def check_batch(layers: int, x: Tensor, options: Mapping[str, Any]) -> None:
    """ValueError unless each prompt's rows are whole samples of so many layers: ComfyUI runs several prompts' as one
    batch."""
    count = len(x) // max(1, len(options.get("cond_or_uncond", (0,))))
    if count % layers:
        raise ValueError(
            f"latent_image: expected a batch in multiples of {layers}, one latent for each layer that the model draws "
            f"together, got {count}"
        )
