"""Model files into MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any

from ...core.lora import read_lora
from ...hosts import schema as io
from ...hosts.folders import model_file, models
from ._node import StockNode


def _changed(kind: str, name: str) -> int:
    return model_file(kind, name).stat().st_mtime_ns


class CheckpointLoaderSimple(StockNode):
    """A whole model from one file or diffusers folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CheckpointLoaderSimple",
            display_name="Load Checkpoint",
            category="loaders",
            description="Loads Stable Diffusion 1.5 or XL from one file, or a diffusers folder, in models/checkpoints.",
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=models("checkpoints"),
                    tooltip="A .safetensors file, or a diffusers folder, below models/checkpoints.",
                )
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
            search_aliases=["model", "safetensors", "diffusers"],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str) -> int:
        return _changed("checkpoints", ckpt_name)

    @classmethod
    def execute(cls, ckpt_name: str) -> io.NodeOutput:
        from ...hosts.diffusers.checkpoints import load

        return io.NodeOutput(*load(model_file("checkpoints", ckpt_name)))


def _strength(id: str, what: str) -> io.Input:
    return io.Float.Input(
        id, default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=f"How strongly to change {what}; may be negative."
    )


def _lora_input() -> io.Input:
    return io.Combo.Input("lora_name", options=models("loras"), tooltip="A .safetensors file below models/loras.")


def _with_lora(model: Any, clip: Any, name: str, strength: float, clip_strength: float) -> tuple[Any, Any]:
    from ...hosts.diffusers import HOST
    from ...hosts.weights import read_weights

    if strength == 0 and (clip is None or clip_strength == 0):
        return model, clip
    path = model_file("loras", name)
    try:
        # ComfyUI's loader leaves a guidance embedding out, as it does all it does not know: Apply LCM reads it.
        weights = {key: value for key, value in read_weights(path).items() if not key.endswith("cond_proj.weight")}
        return HOST.with_lora(model, clip, read_lora(weights), strength, clip_strength)
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


class LoraLoader(StockNode):
    """Low-rank deltas added to both networks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoader",
            display_name="Load LoRA",
            category="loaders",
            description="Adds a LoRA to the model and its text encoder. Several may follow one another.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change; the original stays as it is."),
                io.Clip.Input("clip", tooltip="The text encoder to change."),
                _lora_input(),
                _strength("strength_model", "the model"),
                _strength("strength_clip", "the text encoder"),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> int:
        return _changed("loras", lora_name)

    @classmethod
    def execute(
        cls, model: Any, clip: Any, lora_name: str, strength_model: float, strength_clip: float
    ) -> io.NodeOutput:
        return io.NodeOutput(*_with_lora(model, clip, lora_name, strength_model, strength_clip))


class LoraLoaderModelOnly(StockNode):
    """Low-rank deltas added to the noise predictor alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraLoaderModelOnly",
            category="loaders",
            description="Adds a LoRA to the model and leaves the text encoder alone.",
            inputs=[
                io.Model.Input("model", tooltip="The model to change; the original stays as it is."),
                _lora_input(),
                _strength("strength_model", "the model"),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> int:
        return _changed("loras", lora_name)

    @classmethod
    def execute(cls, model: Any, lora_name: str, strength_model: float) -> io.NodeOutput:
        return io.NodeOutput(_with_lora(model, None, lora_name, strength_model, 0)[0])


NODES = [CheckpointLoaderSimple, LoraLoader, LoraLoaderModelOnly]
