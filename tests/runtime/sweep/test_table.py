"""The table is whole whatever happens, and every picture is in it once."""

import pytest

from velatura.runtime.sweep import table as tables
from velatura.runtime.sweep.file import SweepError
from velatura.runtime.sweep.plan import Task
from velatura.runtime.sweep.render import Picture, Result

parquet = pytest.importorskip("pyarrow.parquet")


def add(table, n, **figures):
    pictures = [Picture(b"png", ".png", figures), Picture(b"other", ".png", figures)]
    table.add(Task(n, f"key{n}", 0, {"KSampler.seed": n}), Result(f"key{n}", pictures, None, 0.1, 0.0, "here:1"))


def rows(folder):
    return parquet.read_table(folder / tables.NAME).to_pylist()


def test_a_row_for_each_picture_and_the_pictures(tmp_path):
    with tables.opened(tmp_path) as table:
        add(table, 1, accuracy=1.0)
        add(table, 2, accuracy=0.5)
        assert table.done == {"key1", "key2"}
    found = rows(tmp_path)
    assert [(r["key"], r["picture"], r["KSampler.seed"], r["accuracy"]) for r in found] == [
        ("key1", 0, 1, 1.0), ("key1", 1, 1, 1.0), ("key2", 0, 2, 0.5), ("key2", 1, 2, 0.5)
    ]  # fmt: skip
    assert [(tmp_path / r["file"]).read_bytes() for r in found[:2]] == [b"png", b"other"]
    assert not list((tmp_path / "parts").iterdir())
    with tables.opened(tmp_path) as table:
        assert table.done == {"key1", "key2"}


def test_what_was_killed_before_its_parts_were_dropped_counts_once(tmp_path):
    with tables.opened(tmp_path) as table:
        add(table, 1)
        kept = (tmp_path / "parts" / "key1.parquet").read_bytes()
    (tmp_path / "parts" / "key1.parquet").write_bytes(kept)  # the table was joined, then the power went
    (tmp_path / "parts" / ".key9.parquet-0123.part").write_bytes(b"half")
    with tables.opened(tmp_path) as table:
        add(table, 2)
        assert table.done == {"key1", "key2"}
    assert [r["key"] for r in rows(tmp_path)] == ["key1", "key1", "key2", "key2"]


def test_many_parts_are_joined_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PARTS", 3)
    with tables.opened(tmp_path) as table:
        for n in range(8):
            add(table, n)
        assert len(rows(tmp_path)) >= 8 and len(list((tmp_path / "parts").iterdir())) <= 3
    assert len(rows(tmp_path)) == 16


def test_another_measure_is_another_column(tmp_path):
    with tables.opened(tmp_path) as table:
        add(table, 1, accuracy=1.0)
    with tables.opened(tmp_path) as table:
        add(table, 2, psnr=30.0)
    assert [(r["accuracy"], r["psnr"]) for r in rows(tmp_path)] == [(1.0, None)] * 2 + [(None, 30.0)] * 2


def test_two_sweeps_do_not_write_at_once(tmp_path):
    pytest.importorskip("fcntl")
    with tables.opened(tmp_path), pytest.raises(SweepError, match="another sweep is writing there"):
        tables.Table(tmp_path)


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / tables.NAME).write_bytes(b"PAR1 no more")
    with pytest.raises(SweepError, match=r"results\.parquet is no whole table"):
        tables.Table(tmp_path)
