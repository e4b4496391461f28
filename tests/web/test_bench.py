"""The benchmark of the page, run very small. A failure means a figure of the results can no longer be measured."""

from __future__ import annotations

import os

import pytest

from velatura.benchmarks import _chromium, studio


@pytest.mark.slow
def test_the_page_is_measured() -> None:
    lacking = _chromium.lacking()
    if lacking and not os.environ.get("VELATURA_REQUIRE_BROWSER"):
        pytest.skip(lacking)
    told: list[tuple[int, int]] = []
    figures = studio.run(lambda step, total, preview=None: told.append((step, total)), quick=True)
    for name in ("first_preview_parts_ms", "first_preview_parts_ms_one_picture"):
        at = figures[name]
        assert 0 < at["posted"] < at["queued"] and at["posted"] < at["received"] < at["shown"], name
    assert figures["first_preview_ms"] == figures["first_preview_parts_ms"]["shown"]
    assert 0 < figures["boot_seconds_server"] < figures["boot_seconds"]
    assert figures["outside_requests"] == 0 and figures["queue_lost"] == 0
    assert figures["fuzz_cases"] >= 100 and figures["fuzz_wrong"] == []
    assert isinstance(figures["memory_growth_mb"], float)
    assert told == sorted(told) and told[-1][0] == told[-1][1]
