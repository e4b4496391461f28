"""Sweeps: many prompts, seeds and settings of one workflow, rendered and measured into one table.

`file.py` reads what is asked for and `plan.py` makes tasks of it; `run.py` hands them out to workers, which may vanish
at any time: processes here (`local.py`), on a Ray cluster (`cluster.py`), or ComfyUI servers (`servers.py`).
"""
