"""A picture of five layers, built in the embedded runtime as in a graph: what each layer costs, and what a change of
the last one draws again."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from ..demo import captions, release
from ..hosts.folders import Folders
from ..runtime import registry
from ..runtime.executor import Executor

LAYERS = 5


def figures(steps: int, layers: int = LAYERS) -> dict[str, Any]:
    """Processor seconds of each layer, those of the last over those of the first, and how many of the layers are drawn
    again when the last one is another seed's: 1, or something below was drawn for nothing."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as home:
        executor = Executor(registry.all_nodes(), Folders(output=Path(home), temp=Path(home)))
        for count in range(1, layers + 1):
            start = time.process_time()
            executor.run(_graph(count, steps))
            seconds.append(time.process_time() - start)
        again = executor.run(_graph(layers, steps, last_seed=100)).executed
    return {
        "stack_layers": layers,
        "stack_layer_seconds": seconds[1:],  # the first run loads the model as well
        "stack_growth": seconds[-1] / seconds[1],
        "stack_drawn_again": sum(node.startswith("layer") for node in again),
    }


def _graph(count: int, steps: int, last_seed: int | None = None) -> dict[str, Any]:
    """`count` objects, one after the other, on a canvas."""
    graph: dict[str, Any] = {
        "model": _node("VelaturaDemoModel", model=release.MODEL.name),
        "alpha": _node(
            "VelaturaLoadTransparency", encoder="sprites (demo)", decoder="sprites (demo)", offset_scale=0.0
        ),
        "size": _node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "nothing": _node("CLIPTextEncode", clip=["model", 1], text=""),
        "empty": _node("VAEDecode", samples=["size", 0], vae=["model", 2]),
        "canvas": _node("VelaturaCompositeLayers", image=["empty", 0], name="canvas"),
    }
    below = "canvas"
    for number in range(count):
        last = number == count - 1 and last_seed is not None
        name, text = f"layer {number + 1}", captions.foreground_caption(number, number)
        graph[f"words {number + 1}"] = _node("CLIPTextEncode", clip=["model", 1], text=text)
        graph[name] = _node(
            "VelaturaLayerStack",
            model=["model", 0], transparency=["alpha", 0], vae=["model", 2], layers=[below, 0],
            positive=[f"words {number + 1}", 0], negative=["nothing", 0],
            foreground_lora="sprites-layer-foreground (demo)", background_lora="sprites-layer-background (demo)",
            seed=last_seed if last else number, steps=steps, cfg=3.0, name=name,
        )  # fmt: skip
        below = name
    graph["shown"] = _node("PreviewImage", images=[below, 1])
    return graph


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
