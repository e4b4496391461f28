"""How smooth a model's latent space is: interpolation standard deviation (Smooth Diffusion, Guo et al. 2023, Appendix
A.3, Eq. 18).

Between two noises of one prompt, pictures at equal parts of the slerp; each model is given the same noises. A smooth
model's neighbouring pictures are all equally far apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .interpolation import slerp
from .protocols import Progress, no_progress


def walk(start: Tensor, end: Tensor, count: int = 11) -> Tensor:
    """Noises slerp(start, end; eta) [count, C, h, w] at eta = 0, 1 / (count - 1), ..., 1, of two single ones [C, h, w].

    ValueError if the count is below 3: a standard deviation needs two distances.
    """
    if count < 3:
        raise ValueError(f"frames: expected at least 3, got {count}")
    places = torch.linspace(0, 1, count, dtype=torch.float64)
    return torch.cat([slerp(start[None], end[None], eta, keep_norm=False) for eta in places.tolist()])


def step_distances(images: Tensor) -> Tensor:
    """L2 distances [N - 1] between neighbours of images [N, 3, H, W], in their own units, in float64."""
    return (images[1:].double() - images[:-1].double()).flatten(1).norm(dim=1)


def istd(distances: Tensor) -> Tensor:
    """The standard deviation over each prompt's distances [P, N - 1], [P]; its mean over the prompts is ISTD."""
    return distances.double().std(dim=-1, correction=0)


def measure(
    render: Callable[[int, Tensor], Tensor],
    prompts: int,
    noise: Callable[[int], tuple[Tensor, Tensor]],
    *,
    frames: int = 11,
    progress: Progress = no_progress,
) -> Tensor:
    """`step_distances` of every prompt's walk, [P, frames - 1].

    `render(prompt, noises)` draws pictures [frames, 3, H, W] of one prompt from noises [frames, C, h, w];
    `noise(prompt)` are its two ends, [C, h, w] each, whatever the model.
    """
    rows = []
    for prompt in range(prompts):
        images = render(prompt, walk(*noise(prompt), frames))
        rows.append(step_distances(images))
        progress(prompt + 1, prompts, images[len(images) // 2])
    return torch.stack(rows)
