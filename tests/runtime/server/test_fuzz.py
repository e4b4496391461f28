"""Whatever is sent, the server answers without a fault of its own, and nothing outside its folders is read or changed.

What is sent, and what must hold of each answer, stands in benchmarks/_fuzz.py: the benchmark sends much more of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from velatura.benchmarks import _fuzz
from velatura.runtime.server.config import Config
from velatura.runtime.server.paths import BadPath, contained

FUZZ = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_fuzz.Live]:
    with _fuzz.live(tmp_path_factory.mktemp("home")) as server:
        yield server


@FUZZ
@example((_fuzz.PATHS[0], "link/outside.txt"))
@example((_fuzz.PATHS[0], "..%2f..%2foutside.txt"))
@example((_fuzz.PATHS[3], "link%2Foutside.txt"))
@example((_fuzz.PATHS[3], "%2e%2e%2f%2e%2e%2f%2e%2e%2foutside.txt"))
@given(st.tuples(*_fuzz.KINDS[_fuzz.address]))
def test_no_name_in_an_address_leads_out(live, sent):
    _fuzz.address(live, *sent)


@FUZZ
@given(_fuzz.names())
def test_what_is_contained_is_below(live, name):
    root = live.home / "s" / "input"
    try:
        path = contained(root, name)
    except BadPath:
        return
    assert Path(path).resolve().is_relative_to(root.resolve()) and path != root.resolve()


@FUZZ
@given(st.tuples(*_fuzz.KINDS[_fuzz.graph]))
def test_any_graph_is_run_or_refused_in_words(live, sent):
    _fuzz.graph(live, *sent)


@FUZZ
@given(st.tuples(*_fuzz.KINDS[_fuzz.body]))
def test_any_body_is_taken_or_refused_in_words(live, sent):
    _fuzz.body(live, *sent)


@pytest.mark.filterwarnings("ignore::aiohttp.multipart.BadContentDispositionHeader")
@FUZZ
@given(st.tuples(*_fuzz.KINDS[_fuzz.upload]))
def test_any_upload_is_a_picture_or_refused(live, sent):
    _fuzz.upload(live, *sent)


@FUZZ
@given(st.tuples(*_fuzz.KINDS[_fuzz.websocket]))
def test_a_websocket_bears_anything(live, sent):
    """And the queue is still told to it."""
    _fuzz.websocket(live, *sent)


def test_the_checks_see_a_leak(live):
    """Otherwise they would pass on any server."""
    leak = live.home / "s" / "output" / "leak.txt"
    leak.write_bytes(_fuzz.TOKEN)
    with pytest.raises(AssertionError, match="was read"):
        _fuzz.address(live, _fuzz.PATHS[0], "leak.txt")
    leak.unlink()
    (live.home / "new").touch()
    with pytest.raises(AssertionError, match="was changed"):
        _fuzz.body(live, "/queue", "{}")
    (live.home / "new").unlink()


HOSTS = st.sampled_from(["127.0.0.1", "localhost", "evil.example", "[::1]", "::1", "127.1", "0x7f.1", "2130706433", ""])
TAILS = st.sampled_from(
    ["", ":80", ":99999", ":x", ".", "@evil.example", "/", "?", "#", ".evil.example", " evil.example", "%00"]
)


@FUZZ
@given(HOSTS, TAILS)
def test_no_way_to_write_a_foreign_name_gets_in(live, host, tail):
    from velatura.runtime.server.guard import _is_ours

    if _is_ours(host + tail, Config()):
        assert host in ("127.0.0.1", "localhost", "[::1]") and tail in ("", ":80", ":99999")
