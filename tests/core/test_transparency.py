"""The networks of latent transparency: the released layout, and decoding at any size, in passes and tiles."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from velatura.core import stripes
from velatura.core import transparency as tr
from velatura.core import transparency_file as files
from velatura.core.alpha import pad_rgb
from velatura.core.transparency_decode import TURNS, decode, turn, turn_back

WIDTHS = (8, 8, 16, 24)


def seeded(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = noise / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * noise + ("norm" in name and "weight" in name)
    return network.eval().requires_grad_(False)


def small(layers=1, attention_from=3):
    return seeded(tr.TransparencyDecoder(WIDTHS, 4, layers, attention_from))


def inputs(h, w, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, h, w, generator=generator), torch.randn(batch, 4, h // 8, w // 8, generator=generator)


def meta(make):
    with torch.device("meta"):
        return make()


def test_the_released_encoder_loads_whole():
    network = tr.TransparencyEncoder()
    shapes = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    channels = [4, 32, 32, 64, 64, 128, 128, 256, 256, 4]
    expected = {f"blocks.{2 * k}.weight": (channels[k + 1], channels[k], 3, 3) for k in range(9)}
    expected |= {f"blocks.{2 * k}.bias": (channels[k + 1],) for k in range(9)}
    assert shapes == expected
    assert sum(p.numel() for p in network.parameters()) == 1_181_764
    loaded = files.encoder_from({name: value.half() for name, value in network.state_dict().items()})
    assert next(loaded.parameters()).dtype == torch.float32
    assert loaded(torch.rand(1, 3, 24, 16), torch.rand(1, 1, 24, 16)).shape == (1, 4, 3, 2)


def released_decoder():
    """Name -> shape of the released decoder, from its published description."""
    widths = (32, 32, 64, 128, 256, 512, 512)
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name, *weight):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, (weight[0],)

    def resnet(name, before, after):
        layer(f"{name}.norm1", before)
        layer(f"{name}.conv1", after, before, 3, 3)
        layer(f"{name}.norm2", after)
        layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            layer(f"{name}.conv_shortcut", after, before, 1, 1)

    def attention(name, width):
        layer(f"{name}.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            layer(f"{name}.{part}", width, width)

    layer("conv_in", 32, 3, 3, 3)
    layer("latent_conv_in", 64, 4, 1, 1)
    before = 32
    for k, width in enumerate(widths):
        for i in range(2):
            resnet(f"down_blocks.{k}.resnets.{i}", width if i else before, width)
            if k >= 4:
                attention(f"down_blocks.{k}.attentions.{i}", width)
        if k < 6:
            layer(f"down_blocks.{k}.downsamplers.0.conv", width, width, 3, 3)
        before = width
    resnet("mid_block.resnets.0", 512, 512)
    attention("mid_block.attentions.0", 512)
    resnet("mid_block.resnets.1", 512, 512)
    ups = [(1024, 1024, 1024), (1024, 1024, 768), (768, 512, 384), (384, 256, 192), (192, 128, 96)]
    ups += [(96, 64, 64), (64, 64, 64)]
    for k, (joined, width) in enumerate(zip(ups, reversed(widths), strict=True)):
        for i in range(3):
            resnet(f"up_blocks.{k}.resnets.{i}", joined[i], width)
            if k < 3:
                attention(f"up_blocks.{k}.attentions.{i}", width)
        if k < 6:
            layer(f"up_blocks.{k}.upsamplers.0.conv", width, width, 3, 3)
    layer("conv_norm_out", 32)
    layer("conv_out", 4, 32, 3, 3)
    return shapes


def test_the_released_decoder_loads_whole():
    network = meta(tr.TransparencyDecoder)
    assert {name: tuple(p.shape) for name, p in network.state_dict().items()} == released_decoder()
    assert sum(p.numel() for p in network.parameters()) == 104_104_804
    file = {name: torch.empty(shape, device="meta") for name, shape in released_decoder().items()}
    loaded = files.decoder_from(file)
    assert loaded.multiple == 64 and set(loaded.state_dict()) == set(file)


def test_any_widths_are_read_from_a_file():
    for layers, attention_from in ((1, 3), (2, 4), (2, 2)):
        network = small(layers, attention_from)
        loaded = files.decoder_from(network.state_dict())
        image, latent = inputs(16, 24)
        assert torch.equal(loaded(image, latent), network(image, latent))
    widths = (8, 16, 24, 32)
    encoder = seeded(tr.TransparencyEncoder(widths, 6))
    assert set(files.encoder_from(encoder.state_dict()).state_dict()) == set(encoder.state_dict())


@pytest.mark.parametrize("read", [files.encoder_from, files.decoder_from])
def test_other_and_broken_files_are_refused(read):
    with pytest.raises(ValueError, match="some other model"):
        read({"conv_in.weight": torch.zeros(1)})
    own = small() if read is files.decoder_from else tr.TransparencyEncoder(WIDTHS)
    other = tr.TransparencyEncoder(WIDTHS) if read is files.decoder_from else small()
    with pytest.raises(ValueError, match=r"it is (a decoder|an encoder)"):
        read(other.state_dict())
    state = own.state_dict()
    state.pop(list(state)[-1])
    with pytest.raises(ValueError, match="not a whole transparency"):
        read(state)
    with pytest.raises(ValueError, match="not a whole transparency"):
        read(own.state_dict() | {"extra": torch.zeros(1)})


def test_the_offset_is_measured_in_the_autoencoders_deviation():
    mean, std, offset = (torch.rand(1, 4, 2, 2, generator=torch.Generator().manual_seed(k)) for k in range(3))
    moved = tr.add_offset(mean, std, offset, 300.0)
    torch.testing.assert_close((moved - mean) / std, 300 * offset)
    assert torch.equal(tr.add_offset(mean, std, offset, 0.0), mean)


def test_encoding_is_the_premultiplied_picture_plus_the_offset():
    """Opaque pictures reach the autoencoder as they are, empty ones as the backdrop, whatever colour lies there."""
    network = seeded(tr.TransparencyEncoder(WIDTHS))
    colour, alpha = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    alpha[..., 8:] = 0
    seen = []

    def posterior(image):
        seen.append(image)
        return F.avg_pool2d(image, 8)[:, [0, 0, 1, 2]], torch.full((1, 4, 2, 2), 0.5)

    latent = tr.encode(network, posterior, colour, alpha, tr.Convention(scale=2.0, backdrop=0.25))
    torch.testing.assert_close(seen[0][..., :8], 2 * colour[..., :8] - 1)
    assert bool((seen[0][..., 8:] == 0.25).all())
    plain = tr.encode(network, posterior, colour, alpha, tr.Convention(scale=0.0, backdrop=0.25))
    torch.testing.assert_close(latent - plain, network(pad_rgb(colour, alpha), alpha))
    other = torch.where(alpha > 0, colour, 1 - colour)
    torch.testing.assert_close(tr.encode(network, posterior, other, alpha, tr.Convention(2.0, 0.25)), latent)


def test_a_file_tells_its_convention_and_a_released_one_needs_not_to():
    ours = tr.Convention(1.0, 0.6, True)
    assert files.convention_of(files.metadata_of(ours)) == ours
    assert files.convention_of({"format": "pt"}) == tr.Convention(300.0, 0.0, False)
    with pytest.raises(ValueError, match="metadata velatura_transparency cannot be read"):
        files.convention_of({files.METADATA: "{}"})


def test_stripes_are_the_same_numbers(monkeypatch):
    """Striped, and whole as while training: norms over the whole picture, rows at the seams, joined parts."""
    network, (image, latent) = small(2, 2), inputs(72, 40)
    monkeypatch.setattr(stripes, "STRIPE", 2000)
    with torch.no_grad():
        striped = network.double()(image.double(), latent.double())
    with torch.enable_grad():
        whole = network(image.double(), latent.double())
    torch.testing.assert_close(striped, whole, rtol=0, atol=1e-10)


def test_padded_heads_attend_as_plain_ones():
    attention = seeded(tr.Attention(16))
    x = torch.randn(1, 16, 3, 5, generator=torch.Generator().manual_seed(2))
    tokens = F.group_norm(x, 4, attention.group_norm.weight, attention.group_norm.bias, 1e-5).flatten(2).mT
    q, k, v = (
        each(tokens).view(1, 15, 2, 8).transpose(1, 2) for each in (attention.to_q, attention.to_k, attention.to_v)
    )
    seen = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
    expected = x + attention.to_out[0](seen.transpose(1, 2).reshape(1, 15, 16)).mT.reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("how", TURNS)
def test_a_turn_is_turned_back(how):
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert torch.equal(turn_back(turn(x, *how), *how), x)


def test_the_turns_are_all_eight():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert len({tuple(turn(x, *how).flatten().tolist()) for how in TURNS}) == 8


def reference(network, image, latent, count):
    """Pass after pass, as it is published: turn, decode, turn back, lower median."""
    seen = [turn_back(network(turn(image, *how), turn(latent, *how)).clamp(0, 1), *how) for how in TURNS[:count]]
    return torch.stack(seen).sort(0).values[(count - 1) // 2], torch.stack(seen).mean(0)


@pytest.mark.parametrize("passes", [1, 2, 4, 8])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_passes_are_the_reference_whatever_runs_together(passes, batch):
    network, (image, latent) = small(), inputs(24, 16, 2)
    median, mean = reference(network, image, latent, passes)
    for average, expected in (("median", median), ("mean", mean)):
        found = decode(network, image, latent, passes=passes, average=average, batch=batch)
        torch.testing.assert_close(torch.cat([found.alpha, found.colour], 1), expected, rtol=0, atol=1e-5)
        assert found.passes == [passes] * 2


def test_any_size_is_padded_and_cropped():
    """The released network refuses sides that are no multiples of 64."""
    network = seeded(tr.TransparencyDecoder((8,) * 7, 4, 1, 7))
    with pytest.raises(ValueError, match="multiples of 64"):
        network(*inputs(72, 64))
    found = decode(network, *inputs(72, 136), passes=2)
    assert found.colour.shape == (1, 3, 72, 136) and found.alpha.shape == (1, 1, 72, 136)


class Pointwise(nn.Module):
    """Sees each cell alone, so that tiles of it must be exact. Its passes differ by `spread`."""

    multiple = 8
    latent_conv_in = nn.Conv2d(4, 1, 1)

    def __init__(self, spread=0.0):
        super().__init__()
        self.spread, self.calls, self.largest = spread, 0, 0

    def forward(self, image, latent):
        self.calls += 1
        self.largest = max(self.largest, image.shape[2])
        big = F.interpolate(latent, scale_factor=8.0)[:, :1].sigmoid()
        return torch.cat([big, image], 1) + self.spread * (self.calls % 2)


@pytest.mark.parametrize("size", [(64, 64), (136, 72), (40, 200)])
def test_tiles_are_blended_without_a_seam(size):
    network, (image, latent) = Pointwise(), inputs(*size, 2)
    whole = decode(network, image, latent, passes=1)
    network.largest = 0
    tiled = decode(network, image, latent, passes=1, tile=64, overlap=16)
    assert network.largest <= 64
    torch.testing.assert_close(tiled.colour, whole.colour)
    torch.testing.assert_close(tiled.alpha, whole.alpha)


def test_auto_stops_once_the_passes_agree():
    image, latent = inputs(32, 32)
    assert decode(Pointwise(), image, latent, passes="auto").passes == [2]
    assert decode(Pointwise(0.2), image * 0.5, latent, passes="auto").passes == [8]


def test_progress_counts_to_the_end_and_may_cancel_within_a_pass():
    steps = []
    network, (image, latent) = Pointwise(), inputs(96, 64, 2)
    decode(network, image, latent, passes="auto", tile=64, overlap=16, progress=lambda *at: steps.append(at[:2]))
    assert steps == sorted(steps) and steps[-1] == (2 * 2 * 8, 2 * 2 * 8)

    def cancel(step, total, preview=None):
        raise KeyboardInterrupt

    network.calls = 0
    with pytest.raises(KeyboardInterrupt):
        decode(network, image, latent, progress=cancel)
    assert network.calls == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": torch.rand(1, 3, 16, 24)}, "image: expected"),
        ({"latent": torch.rand(1, 16, 2, 2)}, "latent: expected"),
        ({"passes": 3}, "passes: expected"),
        ({"tile": 12}, "tile: expected"),
        ({"tile": 64, "overlap": 40}, "tile: expected"),
    ],
)
def test_what_does_not_fit_is_named(given, message):
    image, latent = inputs(16, 16)
    wanted = {"image": image, "latent": latent} | given
    with pytest.raises(ValueError, match=message):
        decode(small(), **wanted)
