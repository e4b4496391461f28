"""The demo model, through the node that people use."""

import pytest
import torch

from velatura.core.protocols import LatentCodec, LatentModel, TextEncoder
from velatura.nodes import load


@pytest.fixture
def shipped(sprites_folder, monkeypatch, tmp_path):
    """The folder of shipped models, with the seeded random weights in it where the trained ones are not there yet."""
    if sprites_folder.name != "sprites":
        (tmp_path / "sprites").symlink_to(sprites_folder)
        monkeypatch.setattr(load, "DEMO_MODELS", tmp_path)


def test_the_demo_model_is_the_hosts_own_three(shipped):
    """Stock nodes must run on what the loader gives; a wrong order of outputs would not show before they do."""
    model, clip, vae = load.VelaturaDemoModel.execute("sprites").args
    assert isinstance(model, LatentModel) and isinstance(clip, TextEncoder) and isinstance(vae, LatentCodec)
    condition = clip.encode(["a red glass ball"])
    noise = model.predict_noise(torch.zeros(1, 4, 16, 16), torch.tensor([500]), condition)
    assert noise.shape == (1, 4, 16, 16)
    assert vae.decode(noise).shape == (1, 3, 128, 128)


def test_a_copy_without_its_models_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "DEMO_MODELS", tmp_path)
    with pytest.raises(FileNotFoundError, match="came without its models"):
        load.VelaturaDemoModel.execute("sprites")
