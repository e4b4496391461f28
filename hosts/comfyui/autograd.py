"""Gradients inside a ComfyUI node: the one place that knows about inference mode."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
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


def thawed(value: Any) -> Any:
    """The value with every inference tensor, also inside containers, replaced by a clone that autograd may save."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, Mapping):
        return {key: thawed(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(thawed(entry) for entry in value)
    return value


def differentiable_attention(attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """For `optimized_attention_override`: of ComfyUI's attentions only PyTorch's own has a complete backward pass."""
    return attention_pytorch(*args, **kwargs)
