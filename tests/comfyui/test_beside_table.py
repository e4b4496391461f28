"""The table in the documentation is what the tests say. Needs no ComfyUI."""

from __future__ import annotations

from . import matrix


def test_the_table_is_that_of_the_tests() -> None:
    text = matrix.PAGE.read_text(encoding="utf-8")
    assert matrix.page(text) == text, "stale: run tests/comfyui with --beside-table (the head of matrix.py says how)"


def test_every_row_and_column_is_tested() -> None:
    outcomes = matrix.declared()
    assert {each.tool for each in outcomes} == set(matrix.TOOLS)
    assert {each.other for each in outcomes} == set(matrix.OTHERS)
