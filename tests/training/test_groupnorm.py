"""The quick group normalisation gives torch's own output and gradients."""

import pytest
import torch
from torch import nn

from velatura.training.groupnorm import QuickGroupNorm, quicken


@pytest.mark.parametrize(("channels", "groups"), [(8, 8), (12, 4), (6, 1)])
def test_output_and_gradients_are_torchs(channels, groups):
    generator = torch.Generator().manual_seed(0)
    plain = nn.GroupNorm(groups, channels, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(channels, generator=generator, dtype=torch.float64))
        plain.bias.copy_(torch.randn(channels, generator=generator, dtype=torch.float64))
    quick = quicken(nn.Sequential(plain))[0]
    assert isinstance(quick, QuickGroupNorm)
    x = torch.randn(3, channels, 5, 7, generator=generator, dtype=torch.float64) * 2 + 1
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    g = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    out, reference = quick(x), nn.functional.group_norm(x, groups, plain.weight, plain.bias, plain.eps)
    assert torch.allclose(out, reference)
    for mine, theirs in zip(
        torch.autograd.grad(out, (x, plain.weight, plain.bias), g),
        torch.autograd.grad(reference, (x, plain.weight, plain.bias), g),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_second_derivative_is_refused():
    """Its backward is no function of its inputs to autograd: what it would give is silently wrong."""
    quick = quicken(nn.Sequential(nn.GroupNorm(2, 4, dtype=torch.float64)))
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(quick(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.norm().backward()


def test_one_picture_may_come_with_any_batch_stride():
    """Attention's output of a single picture is channels last but for that stride, which torch's kernel refuses."""
    norm = quicken(torch.nn.GroupNorm(2, 4))
    x = torch.randn(1, 6, 4).transpose(1, 2).reshape(1, 4, 2, 3).as_strided((1, 4, 2, 3), (1, 1, 12, 4))
    torch.testing.assert_close(norm(x), torch.nn.functional.group_norm(x.contiguous(), 2, norm.weight, norm.bias))
