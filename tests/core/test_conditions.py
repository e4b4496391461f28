"""When conditions are the same to a network, and which may share a batch."""

from __future__ import annotations

import pytest
import torch

from velatura.core.conditions import check_one_batch, same
from velatura.core.protocols import Condition, Site
from velatura.core.shared_attention import shared_attention

A, B = torch.ones(1, 3, 2), torch.zeros(1, 3, 2)


def test_conditions_are_the_same_by_all_that_they_carry() -> None:
    picture = torch.ones(1, 4)
    assert same(Condition(A), Condition(A.expand(5, 3, 2)))
    assert not same(Condition(A), Condition(B)) and not same(Condition(A), Condition(A, A[0]))
    assert same(Condition(A, extras={"picture": picture}), Condition(A, extras={"picture": picture.clone()}))
    assert not same(Condition(A, extras={"picture": picture}), Condition(A))


def test_one_batch_has_one_size_and_one_controlnet() -> None:
    control = object()
    check_one_batch(Condition(A, extras={"control": control}), Condition(B, extras={"control": control}))
    with pytest.raises(ValueError, match="differ in control, width"):
        check_one_batch(Condition(A, extras={"control": control, "width": 8}), Condition(B, extras={"width": 9}))


def test_fewer_queries_than_keys_see_the_keys_of_all_layers() -> None:
    # What a patch that merges tokens leaves of them.
    q, k, v = torch.randn(4, 2, 6), torch.randn(4, 5, 6), torch.randn(4, 5, 6)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        assert q.shape == (2, 4, 6) and k.shape == v.shape == (2, 10, 6)
        return torch.softmax(q @ k.mT, -1) @ v

    out = shared_attention(2)(Site("mid", 0, "self"), q, k, v, attend)
    expected = torch.softmax(q[2:3] @ torch.cat([k[2], k[3]]).mT, -1) @ torch.cat([v[2], v[3]])
    torch.testing.assert_close(out[2:3], expected)
