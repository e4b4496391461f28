"""Motion supervision, tracking, and sampling beside the original, on a network in closed form and on the demo model."""

import pytest
import torch

from velatura.core import drag
from velatura.core.ddim import ddim_timesteps
from velatura.core.ddim_inversion import ddim_invert
from velatura.core.drag_sampling import reference_attention, reference_sites, sample_beside
from velatura.core.dragging import Task, careful, padded
from velatura.core.protocols import Site

SIZE = (64, 64)


def blob(x: float, y: float) -> torch.Tensor:
    """A feature map [1, 2, 32, 32] of a 64 x 64 picture, whose features tell the place relative to (x, y)."""
    at = 2 * torch.arange(32.0) + 0.5
    dx, dy = (at - x)[None, :].expand(32, -1), (at - y)[:, None].expand(-1, 32)
    bell = torch.exp(-(dx**2 + dy**2) / 200)
    return torch.stack([bell, bell * dx / 10])[None]


def test_tracking_finds_what_has_moved():
    first = drag.sample_at(blob(30.5, 30.5), torch.tensor([[30.5, 30.5]]), SIZE)[0]
    handle, target = torch.tensor([[30.5, 30.5]]).double(), torch.tensor([[44.5, 30.5]]).double()
    found = drag.track_handles(blob(34.5, 32.5), first, handle, target, SIZE, drag.Settings())
    assert torch.allclose(found, torch.tensor([[34.5, 32.5]]).double())


def test_a_handle_out_of_reach_is_sought_along_its_way():
    """12 pixels in one step are more than the window of 6; the way to the target is looked at before giving up."""
    first = drag.sample_at(blob(30.5, 30.5), torch.tensor([[30.5, 30.5]]), SIZE)[0]
    handle, target = torch.tensor([[30.5, 30.5]]).double(), torch.tensor([[50.5, 30.5]]).double()
    now = blob(30.5, 30.5) * 0 + 5  # nothing like it anywhere ...
    stays = drag.track_handles(now, first, handle, target, SIZE, drag.Settings())
    assert torch.equal(stays, handle), "a lost handle stays where it was"
    now[..., 14:17, 20:23] = blob(30.5, 30.5)[..., 14:17, 14:17]  # ... but 12 pixels ahead
    found = drag.track_handles(now, first, handle, target, SIZE, drag.Settings())
    assert float((found - torch.tensor([[42.5, 30.5]])).norm()) <= 2


def test_the_loss_pulls_the_feature_ahead_towards_the_handles():
    """sg on F(q): the gradient reaches only the place one step ahead (DragDiffusion, Eq. 3)."""
    now = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    handle, target = torch.tensor([[20.5, 20.5]]), torch.tensor([[40.5, 20.5]])
    settings = drag.Settings(patch=0)
    loss = drag.motion_loss(now, handle, target, SIZE, settings)
    expected = (now[0, :, 10, 10] - now[0, :, 10, 11]).abs().mean()
    assert torch.allclose(loss, expected, atol=1e-5)
    loss.backward()
    touched = now.grad.abs().sum((0, 1)).nonzero().tolist()
    assert touched == [[10, 11]]


def test_the_last_step_is_no_longer_than_the_way():
    now = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    handle = torch.tensor([[20.5, 20.5]])
    near = drag.motion_loss(now, handle, handle + 1e-4, SIZE, drag.Settings(patch=0))
    assert float(near) < 1e-3


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"steps": -1}, {"reach": 0.0}])
def test_settings_name_what_is_wrong(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        drag.Settings(**wrong)


def test_reference_attention_reads_the_original_by_parts():
    """What has moved sees what it was, the rest sees the rest: nothing else would keep the place it left empty."""
    site = Site("up.1.0", 0, "self")
    source, moved = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    source[..., :4] = 1  # the left half ...
    moved[..., 4:] = 1  # ... goes to the right
    rule = reference_attention(frozenset([site]), (8, 8), source, moved)
    q, k, v = torch.randn(3, 2, 64, 5, generator=torch.Generator().manual_seed(0)).unbind(0)

    def attend(q, k, v):
        return torch.softmax(q @ k.transpose(1, 2), -1) @ v

    out = rule(site, q, k, v, attend)
    assert torch.allclose(out[:1], attend(q[:1], k[:1], v[:1])), "the original sees itself"
    left = torch.arange(64) % 8 < 4
    assert torch.allclose(out[1:, ~left], attend(q[1:, ~left], k[:1, left], v[:1, left]), atol=1e-6)
    assert torch.allclose(out[1:, left], attend(q[1:, left], k[:1, ~left], v[:1, ~left]), atol=1e-6)
    other = Site("down.0.0", 0, "self")
    assert torch.equal(rule(other, q, k, v, attend), attend(q, k, v))


@pytest.fixture(scope="module")
def demo():
    from velatura.demo import release
    from velatura.hosts import load

    return load("diffusers").load_folder(release.MODEL)


@pytest.fixture(scope="module")
def case():
    from velatura.demo import drag as cases

    return cases.cases(1)[0]


def test_what_nobody_changed_ends_as_it_was(demo, case):
    """Sampling beside its own path adds what each step misses: to rounding, whatever the inversion lost."""
    model, text, codec = demo
    condition = text.encode([case.caption])
    timesteps = ddim_timesteps(1000, 6)[2:]
    with torch.no_grad():
        x_0 = codec.encode(case.picture * 2 - 1)
        pivots = ddim_invert(model, x_0, condition, timesteps=timesteps, corrected=False)
        whole = torch.ones(1, 1, *x_0.shape[2:])
        same = sample_beside(model, pivots[-1], pivots, condition, timesteps, whole, reference=False)
        assert torch.allclose(same, x_0, atol=1e-4)
        other = pivots[-1] + 0.3 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
        left = whole.clone()
        left[..., :8] = 0
        kept = sample_beside(model, other, pivots, condition, timesteps, left)
        assert torch.allclose(kept[..., :8], x_0[..., :8], atol=1e-6), "outside of what may change it is the original"
        assert not torch.allclose(kept[..., 8:], x_0[..., 8:], atol=1e-2)
    assert {site.place for site in reference_sites(model)} == {"up.1.0", "up.1.1"}


def test_optimising_brings_the_handle_nearer(demo, case):
    """The published loop, from the picture itself; the best step is kept, and memory's price changes nothing."""
    model, text, codec = demo
    condition = text.encode([case.caption])
    settings = drag.Settings(steps=6, rate=0.05)
    with torch.no_grad():
        x_t = model.schedule.add_noise(
            codec.encode(case.picture * 2 - 1),
            torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
            torch.tensor(501),
        )
    seen = []
    mask = torch.ones(1, 1, 16, 16)
    start = (model, x_t, torch.tensor(501), condition, case.handles, case.targets, mask, (128, 128), settings)
    found = drag.optimise(*start, watch=lambda step, x_0, handles: seen.append((step, x_0.shape, handles)))
    assert [step for step, *_ in seen] == list(range(len(found.track)))
    misses = (found.track - case.targets).norm(dim=-1).mean(1)
    assert float(misses.min()) < float(misses[0])
    assert found.best == int(misses.argmin()) and torch.equal(found.places, found.track[found.best])
    assert len(found.losses) == 6 and found.x_t.dtype == torch.float32
    again = drag.optimise(*start, low_memory=True)
    assert torch.allclose(again.x_t, found.x_t, atol=1e-4)


def test_outside_of_the_mask_the_picture_is_the_same(demo, case):
    model, text, codec = demo
    task = Task(case.picture[..., :120, :], case.mask[..., :120, :], case.handles, case.targets)
    told = []
    made = careful(
        model, codec, task, text.encode([case.caption]), drag.Settings(steps=1), steps=4,
        progress=lambda step, total, shown: told.append((step, total)),
    )  # fmt: skip
    assert made.image.shape == task.image.shape, "a size that is no multiple of 8 comes back as it was"
    changed = (made.image - task.image).abs().amax((0, 1)) > 0
    assert bool(changed.any()) and not bool(changed[:8].any()), "far from the mask, pixel for pixel"
    assert [step for step, _ in told] == sorted(step for step, _ in told) and told[-1][0] <= told[-1][1]


def test_cancel_takes_effect_within_a_step(demo, case):
    model, text, codec = demo

    class Stop(Exception):
        pass

    def stop(step, total, shown):
        if step >= 5:
            raise Stop

    task = Task(case.picture, case.mask, case.handles, case.targets)
    with pytest.raises(Stop):
        careful(model, codec, task, text.encode([case.caption]), drag.Settings(steps=4), steps=4, progress=stop)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"handles": torch.zeros(0, 2), "targets": torch.zeros(0, 2)}, "points: expected at least one"),
        ({"mask": torch.zeros(1, 1, 128, 128)}, "mask: it is empty"),
        ({"mask": torch.ones(1, 1, 64, 64)}, "mask: expected the image's size 128x128, got 64x64"),
    ],
)
def test_bad_input_is_named(demo, case, change, says):
    model, text, codec = demo
    given = {"image": case.picture, "mask": case.mask, "handles": case.handles, "targets": case.targets} | change
    with pytest.raises(ValueError, match=says):
        careful(model, codec, Task(**given), text.encode([""]), drag.Settings())


def test_padding_repeats_the_edge():
    image = torch.rand(1, 3, 10, 16)
    assert padded(image, 8).shape == (1, 3, 16, 16)
    assert torch.equal(padded(image, 8)[..., 15, :], image[..., 9, :])
    assert padded(image, 2) is not None and padded(image, 2).shape == image.shape
