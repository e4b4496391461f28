"""From a dragged latent to a picture: sampling that looks at the original, and keeps what nobody dragged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .ddim import ddim_transfer
from .ddim_inversion import Preview, falling, previews
from .protocols import Attend, AttentionRule, Condition, LatentModel, Progress, Site, no_progress


def reference_sites(model: LatentModel) -> frozenset[Site]:
    """The self attentions that read the original: those of the upper half of the up-sampling levels (DragDiffusion's
    last 6 of 16 in Stable Diffusion 1.5)."""
    levels = sorted({int(place.split(".")[1]) for place in model.places() if place.startswith("up.")})
    upper = {f"up.{level}." for level in levels[len(levels) // 2 :]}
    return frozenset(
        site for site in model.sites() if site.kind == "self" and any(site.place.startswith(name) for name in upper)
    )


def reference_attention(
    sites: frozenset[Site], latent: tuple[int, int], source: Tensor | None = None, moved: Tensor | None = None
) -> AttentionRule:
    """Mutual self attention (MasaCtrl, Cao et al. 2023): in a batch (original, ..., edited) the last one's queries meet
    the first one's keys and values at `sites`.

    With masks [1, 1, H, W] of what moves, in the original (`source`) and in the edited picture (`moved`), what has
    moved looks only at what it was, and the rest only at the rest: the place it left does not grow it again. `latent`
    is the latents' size (h, w).
    """
    tokens: dict[int, tuple[Tensor, Tensor] | None] = {}

    def parts(count: int) -> tuple[Tensor, Tensor] | None:
        if count not in tokens:
            tokens[count] = _tokens(count, latent, source, moved)
        return tokens[count]

    def rule(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site not in sites or len(q) < 2:
            return attend(q, k, v)
        others, masks = attend(q[:-1], k[:-1], v[:-1]), parts(q.shape[1])
        if masks is None:
            return torch.cat([others, attend(q[-1:], k[:1], v[:1])])
        was, now = (each.to(q.device) for each in masks)
        edited = torch.empty_like(others[:1])
        for at, seen in ((now, was), (~now, ~was)):
            edited[:, at] = attend(q[-1:, at], k[:1, seen], v[:1, seen])
        return torch.cat([others, edited])

    return rule


def _tokens(
    count: int, latent: tuple[int, int], source: Tensor | None, moved: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Which of a site's tokens what moves covers, before and after: bool [N] each. None if one of them is none or all,
    or the masks are not given."""
    height, width = latent
    while height * width > count:
        height, width = (height + 1) // 2, (width + 1) // 2
    if source is None or moved is None or height * width != count:
        return None
    was, now = (F.adaptive_avg_pool2d(mask.float(), (height, width)).flatten() > 0.5 for mask in (source, moved))
    if any(bool(each.all()) or not bool(each.any()) for each in (was, now)):
        return None
    return was, now


def sample_beside(
    model: LatentModel,
    x_t: Tensor,
    pivots: Tensor,
    condition: Condition,
    timesteps: Tensor,
    change: Tensor,
    *,
    free: Tensor | None = None,
    source: Tensor | None = None,
    moved: Tensor | None = None,
    reference: bool = True,
    progress: Progress = no_progress,
    preview: Preview | None = None,
) -> Tensor:
    """Sample `x_t` [1, C, h, w] along the falling `timesteps` [n] to clean data, beside the paths `pivots` [n + 1, P,
    C, h, w] of an inversion (`ddim_invert`'s, data first): of the original, and where P = 2 of the picture that x_t
    comes from, the moved one.

    Each step adds what its path's own step misses (Direct Inversion, Ju et al. 2023), so that a latent which nobody
    changed ends as the picture it came from; not where `free` [1, 1, h, w] is 1, for there the picture was a guess.
    Outside `change` [1, 1, h, w] (1 = may change) the latent is the original's at every step. Attention looks at the
    original (`reference_attention`), unless `reference` is off.
    """
    total, x = len(timesteps), x_t
    show = previews(preview, total)
    sites = reference_sites(model) if reference else frozenset[Site]()
    rule = reference_attention(sites, (x.shape[2], x.shape[3]), source, moved)
    trust = 1.0 if free is None else 1 - free.to(x)
    with model.attention(rule):
        for step, (t, s) in enumerate(falling(timesteps)):
            path, ahead = (pivots[total - step - k].to(x) for k in (0, 1))
            rows = torch.cat([path, x])
            eps = model.predict_noise(rows, t.expand(len(rows)).to(x.device), condition)
            stepped = ddim_transfer(model.schedule, rows, eps, t, s)
            x = stepped[-1:] + trust * (ahead[-1:] - stepped[-2:-1])
            x = torch.lerp(ahead[:1], x, change.to(x))
            progress(step + 1, total, show(step + 1, x))
    return x
