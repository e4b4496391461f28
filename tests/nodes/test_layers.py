"""The layer nodes, and their files opened again by other programs' eyes."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import ChannelID

from velatura.core.layers import BLENDS
from velatura.hosts import folders, layered
from velatura.nodes import layers as nodes

H, W = 48, 64


def pixels(seed: int, h: int = H, w: int = W, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """IMAGE and MASK of 8-bit values, soft in places: what a file can hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, h // 8, w // 8, generator=generator)
    alpha = torch.rand(batch, 1, h // 8, w // 8, generator=generator)
    both = torch.nn.functional.interpolate(torch.cat([image, alpha], 1), (h, w), mode="bilinear")
    both = (both * 255).round() / 255
    return both[:, :3].movedim(1, -1), 1 - both[:, 3]


def composite(*args, **more):
    return nodes.VelaturaCompositeLayers.execute(*args, **more).args


@pytest.fixture(autouse=True)
def temp(tmp_path: Path):
    """What nodes show on themselves."""
    with folders.using(folders.Folders(temp=tmp_path / "temp")):
        yield


@pytest.fixture
def scene():
    """A background and two objects, one of them smaller, half outside, half opaque and multiplied."""
    (back, _), (ball, ball_mask), (leaf, leaf_mask) = pixels(0), pixels(1), pixels(2, 24, 32)
    below = composite(back, name="background")[0]
    below = composite(ball, below, ball_mask, "ball — über")[0]
    return composite(leaf, below, leaf_mask, "leaf", 0.5, 44, -8, "multiply")


def save(scene, tmp_path: Path, format: str = "all three", name: str = "sub/scene", **more) -> list[Path]:
    with folders.using(folders.Folders(output=tmp_path)):
        found = nodes.VelaturaSaveLayers.execute(scene[0], name, format, **more)
    return [Path(line) for line in found.args[0].splitlines()]


def expected(scene) -> list[np.ndarray]:
    return [
        (torch.cat([each.colour, each.alpha], 1)[0].movedim(0, -1) * 255).round().byte().numpy()
        for each in scene[0].layers
    ]


def test_composites_are_what_the_files_show(scene):
    made, image, mask, rgba = scene
    assert image.shape == (1, H, W, 3) and mask.shape == (1, H, W) and rgba.shape == (1, H, W, 4)
    assert not mask.any(), "the background is opaque"
    assert [each.name for each in made.layers] == ["background", "ball — über", "leaf"]
    alone = composite(*pixels(1)[:1], mask=pixels(1)[1])
    torch.testing.assert_close(alone[2], pixels(1)[1])
    torch.testing.assert_close(alone[3][..., 3], 1 - pixels(1)[1])


def test_a_harmonised_layer_takes_colour_from_below_and_the_lowest_has_nothing_to_take_from():
    (back, _), (ball, mask) = pixels(0), pixels(1)
    below = composite(back * torch.tensor([0.2, 0.4, 1.0]), name="night", harmonise=1.0)
    assert torch.equal(below[1], (back * torch.tensor([0.2, 0.4, 1.0])).clamp(0, 1))
    plain, blue = (composite(ball, below[0], mask, harmonise=amount)[0].layers[1].colour for amount in (0.0, 0.5))
    assert torch.equal(plain, ball.movedim(-1, 1))
    assert float(blue[:, 2].mean() / blue[:, 0].mean()) > 1.2 * float(plain[:, 2].mean() / plain[:, 0].mean())


def test_a_psd_has_the_layers_with_their_own_transparency(scene, tmp_path):
    (path,) = save(scene, tmp_path, "PSD")
    assert path == tmp_path / "sub" / "scene_00001_.psd"
    psd = PSDImage.open(path)
    assert psd.size == (W, H) and [each.name for each in psd] == ["background", "ball — über", "leaf"]
    for each, pixel in zip(psd, expected(scene), strict=True):
        assert not each.has_mask(), "alpha must not become a mask"
        assert ChannelID.TRANSPARENCY_MASK in {info.id for info in each._record.channel_info}
        assert np.array_equal(np.array(each.topil()), pixel)
    assert (psd[2].left, psd[2].top, psd[2].opacity) == (44, -8, 128)
    assert psd[2].blend_mode.name == "MULTIPLY"
    merged = np.array(psd.topil().convert("RGBA"))
    assert np.abs(merged[..., :3] - (scene[1][0] * 255).numpy()).max() <= 1


def test_an_openraster_file_has_them_too(scene, tmp_path):
    (path,) = save(scene, tmp_path, "OpenRaster")
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert archive.read("mimetype") == b"image/openraster" and archive.testzip() is None
        tree = ElementTree.fromstring(archive.read("stack.xml"))
        assert (tree.get("w"), tree.get("h")) == (str(W), str(H))
        listed = tree.findall("./stack/layer")
        assert [each.get("name") for each in listed] == ["leaf", "ball — über", "background"], "the topmost first"
        for each, pixel in zip(reversed(listed), expected(scene), strict=True):
            with archive.open(str(each.get("src"))) as stream:
                assert np.array_equal(np.array(Image.open(stream)), pixel)
        top = listed[0]
        assert (top.get("x"), top.get("y"), top.get("composite-op")) == ("44", "-8", "svg:multiply")
        assert float(str(top.get("opacity"))) == 0.5
        with archive.open("Thumbnails/thumbnail.png") as stream:
            assert max(Image.open(stream).size) <= 256
        assert "mergedimage.png" in archive.namelist()


def test_a_png_set_says_where_they_lie(scene, tmp_path):
    (path,) = save(scene, tmp_path, "PNG set")
    note = json.loads((path / "layers.json").read_text(encoding="utf-8"))
    assert (note["width"], note["height"]) == (W, H)
    for each, pixel in zip(note["layers"], expected(scene), strict=True):
        assert np.array_equal(np.array(Image.open(path / each["file"])), pixel)
    assert note["layers"][2] | {"file": ""} == {
        "name": "leaf", "file": "", "x": 44, "y": -8, "opacity": 0.5, "blend": "multiply",
    }  # fmt: skip
    assert sorted(each.name for each in tmp_path.joinpath("sub").iterdir()) == ["scene_00001_"], "nothing half written"


def test_a_batch_is_a_file_for_each_picture(tmp_path):
    back, ball = pixels(0)[0], pixels(1, batch=2)
    made = composite(ball[0], composite(back, name="back")[0], ball[1], "ball")
    paths = save(made, tmp_path, "PSD")
    assert [each.name for each in paths] == ["scene_00001_.psd", "scene_00002_.psd"]
    for number, path in enumerate(paths):
        shown = np.array(PSDImage.open(path)[1].topil())[..., :3]
        assert np.array_equal(shown, (ball[0][number] * 255).round().byte().numpy())


def test_nothing_is_ever_replaced(scene, tmp_path):
    assert [each.name for each in save(scene, tmp_path) + save(scene, tmp_path, "PSD")] == [
        "scene_00001_.psd", "scene_00001_.ora", "scene_00001_", "scene_00002_.psd",
    ]  # fmt: skip
    (exact,) = save(scene, tmp_path, "PSD", "mine.psd", numbered=False)
    assert exact == tmp_path / "mine.psd"
    before = exact.read_bytes()
    with pytest.raises(ValueError, match=r"filename: .*mine\.psd is there already"):
        save(scene, tmp_path, "PSD", "mine", numbered=False)
    assert exact.read_bytes() == before


@pytest.mark.parametrize("name", ["", "../out", "/etc/x", "a//b", ".hidden", "a:b", "a/../../b"])
def test_names_stay_in_the_output_folder(scene, tmp_path, name):
    with pytest.raises(ValueError, match="filename: expected a name"):
        save(scene, tmp_path, "PSD", name)


def test_every_blend_has_a_name_in_every_format():
    assert set(layered.PSD_BLENDS) == set(layered.ORA_BLENDS) == set(BLENDS)


def test_masks_of_another_size_or_batch_are_refused():
    image, mask = pixels(0)
    with pytest.raises(ValueError, match="mask: expected the image's size 64x48, got 32x48"):
        composite(image, None, mask[..., :32])
    with pytest.raises(ValueError, match="Load Image gives this one for a picture without transparency"):
        composite(image, None, torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="mask: expected 1, as many as pictures"):
        composite(image, None, mask.repeat(3, 1, 1))
    with pytest.raises(ValueError, match="layer 'third': expected a batch of 2"):
        composite(image.repeat(3, 1, 1, 1), composite(image.repeat(2, 1, 1, 1))[0], None, "third")


GIMP = shutil.which("gimp-console") or shutil.which("gimp")
SCRIPT = """
(let* ((image (car (gimp-file-load RUN-NONINTERACTIVE "{source}" "x")))
       (layers (gimp-image-get-layers image)))
  (for-each (lambda (layer)
      (gimp-message (string-append "LAYER\t" (car (gimp-item-get-name layer))
        "\t" (number->string (car (gimp-drawable-offsets layer)))
        "\t" (number->string (cadr (gimp-drawable-offsets layer)))
        "\t" (number->string (round (car (gimp-layer-get-opacity layer))))
        "\t" (number->string (car (gimp-layer-get-mask layer))))))
    (vector->list (cadr layers)))
  (file-png-save RUN-NONINTERACTIVE image (car (gimp-image-merge-visible-layers image CLIP-TO-IMAGE)) "{target}" "x"
    0 9 0 0 0 0 0))
"""


@pytest.mark.skipif(GIMP is None, reason="GIMP is not installed (Debian: apt install gimp): files are not opened in it")
@pytest.mark.parametrize("format", ["PSD", "OpenRaster"])
def test_gimp_sees_the_same_picture(tmp_path, format):
    """Transparent where ours is, without masks, every layer in its place."""
    (ball, ball_mask), (leaf, leaf_mask) = pixels(1), pixels(2, 24, 32)
    made = composite(leaf, composite(ball, None, ball_mask, "ball")[0], leaf_mask, "leaf", 0.5, 44, -8)
    (path,) = save(made, tmp_path, format)
    target = tmp_path / "seen.png"
    script = SCRIPT.format(source=path, target=target).replace("\n", " ")
    command = [str(GIMP), "--no-interface", "--no-data", "--no-fonts", "--batch", script, "--batch", "(gimp-quit 0)"]
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "GIMP2_DIRECTORY": str(tmp_path / "gimp")}
    done = subprocess.run(command, capture_output=True, text=True, env=home, timeout=300)
    told = done.stdout + done.stderr
    if "Unknown file type" in told:
        pytest.skip(f"this GIMP opens no {format} (GIMP 2.10 needs its Python plug-in for OpenRaster)")
    seen = [line.split("LAYER\t")[1].split("\t") for line in told.splitlines() if "LAYER\t" in line]
    assert [row[:3] for row in seen] == [["leaf", "44", "-8"], ["ball", "0", "0"]], told
    assert all(row[4] == "-1" for row in seen), "no layer may come with a mask"
    assert abs(float(seen[0][3]) - 50) <= 0.5
    ours, theirs = (made[3][0] * 255).numpy(), np.array(Image.open(target).convert("RGBA")).astype(float)
    assert np.abs(ours[..., 3] - theirs[..., 3]).max() <= 2
    visible = ours[..., 3:] / 255
    assert np.abs((ours - theirs)[..., :3] * visible).max() <= 3
