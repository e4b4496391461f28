"""The colours of live previews. A failure means people see another picture while it is drawn than the one they get."""

import json

import pytest
import torch
import torch.nn.functional as F

from velatura.demo import latent_preview, sprites
from velatura.demo.runs import MODEL as SHIPPED
from velatura.hosts import load, preview
from velatura.hosts.diffusers import sampling


@pytest.mark.skipif(not (SHIPPED / "model_index.json").exists(), reason="the demo model is not in this checkout")
def test_the_shipped_colours_are_those_of_the_shipped_autoencoder():
    model, _, codec = load("diffusers").load_folder(SHIPPED)
    images = sprites.draw(5, range(16)).blend
    small = F.avg_pool2d(images, 8)
    seen = torch.stack(
        [sampling.preview(z[None], model.scaling_factor, model.colours) for z in codec.encode(images * 2 - 1)]
    )
    assert 1 - (seen - small).var() / small.var() > 0.95


def test_a_folder_keeps_the_colours_that_were_fitted(random_folder, tmp_path):
    for item in random_folder.iterdir():
        (tmp_path / item.name).symlink_to(item)
    assert load("diffusers").load_folder(tmp_path)[0].colours is None
    latent_preview.write(tmp_path)
    colours = load("diffusers").load_folder(tmp_path)[0].colours
    assert colours is not None and colours == latent_preview.fit(load("diffusers").load_folder(tmp_path)[2])[0]


@pytest.mark.parametrize("broken", ["[", "{}", json.dumps({"factors": [[1, 2, 3]], "bias": [0, 0, 0]})])
def test_broken_colours_are_named(tmp_path, broken):
    (tmp_path / preview.FILE).write_text(broken)
    with pytest.raises(ValueError, match=r"latent_preview\.json"):
        preview.colours(tmp_path, 4)
