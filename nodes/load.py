"""Loading: models as the host's own MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path

from ..hosts import host
from ._api import io, schema

DEMO_MODELS = Path(__file__).resolve().parent.parent / "demo" / "models"


class VelaturaDemoModel(io.ComfyNode):
    """The small model that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaDemoModel",
            display_name="Load Demo Model (Velatura)",
            category="Velatura/load",
            description="Loads the small text-to-image model that ships with the pack: 128×128 pictures of a "
            "procedural world, in seconds on a CPU. Its outputs are native, so stock nodes run on it.",
            search_aliases=["sprites", "tiny model", "example model", "checkpoint"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=["sprites"],
                    default="sprites",
                    tooltip="Which of the shipped models. “sprites” draws one coloured object on a background.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="The noise predictor: 4 latent channels, 1000 steps, predicts the noise."),
                io.Clip.Output(tooltip="The text encoder, up to 30 words of the sprites' vocabulary."),
                io.Vae.Output(tooltip="The autoencoder: an image's sides must be multiples of 8."),
            ],
        )

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        folder = DEMO_MODELS / model
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"The demo model “{model}” is not in {folder}: this copy of the pack came without its models. "
                "Install the pack again, or run `velatura train` to make it."
            )
        return io.NodeOutput(*host().load_folder(folder))
