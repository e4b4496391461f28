"""Gradients inside a ComfyUI node: the one place that knows about inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def gradients() -> Iterator[None]:
    """Autograd on. The executor runs a prompt in inference mode, under which `enable_grad` alone records nothing."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def thaw(module: nn.Module) -> None:
    """Replace the inference tensors among the parameters and buffers by clones that autograd may save.

    To be repeated after every load: moving or unpatching a model brings inference tensors back.
    """
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if parameter.is_inference():
                part._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            elif parameter.requires_grad:
                parameter.requires_grad_(False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


@contextmanager
def own_inputs(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While open, each module works on a copy of its input, so that who else holds the input may write into it."""
    with ExitStack() as hooks:
        for module in modules:
            hook = module.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:]))
            hooks.callback(hook.remove)
        yield


@contextmanager
def answered(network: nn.Module) -> Iterator[None]:
    """ValueError, at the end, unless the network has run while this was open: what a wrapper around it remembers from
    an earlier call has no gradient and no features, or that call's."""
    runs: list[None] = []
    hook = network.register_forward_pre_hook(lambda *_: runs.append(None))
    try:
        yield
    finally:
        hook.remove()
    if not runs:
        raise ValueError(
            "model: a wrapper around its network answers from memory (a cache, as DeepCache is), and this node asks "
            "for gradients or features, which only the network has; connect the model from before it"
        )


def thawed(value: Any) -> Any:
    """The value with every inference tensor, also inside containers, replaced by a clone that autograd may save."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, Mapping):
        return {key: thawed(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(thawed(entry) for entry in value)
    return value


BLOCK_PATCHES = ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")


def writing_patches(patches: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """ComfyUI's `patches`, those between blocks so that they may write into what they are given (FreeU does), though
    it is of a graph: what autograd saves of their work is a copy."""
    between = {name: [_saving_copies(patch) for patch in patches[name]] for name in BLOCK_PATCHES if name in patches}
    return {**patches, **between}


def _saving_copies(patch: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda saved: saved):
            return patch(*args)

    return run


def differentiable_attention(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: Any = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **_: Any,
) -> Tensor:
    """For `optimized_attention_override`: PyTorch's attention, which has a complete backward pass.

    With the kernels that are allowed around it: ComfyUI's own call of it chooses them itself on a GPU, and those it
    prefers cannot be differentiated twice.
    """
    if not skip_reshape:
        # B N C -> B H N D. As the host's own do, keys take the rows of the queries, which a patch may have cut.
        q, k, v = (each.reshape(len(q), -1, heads, each.shape[-1] // heads).transpose(1, 2) for each in (q, k, v))
    if mask is not None and mask.ndim < 4:  # [N, M] or [B, N, M]
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)
