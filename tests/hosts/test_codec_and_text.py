"""What core may rely on in any host's autoencoder and text encoder."""

import pytest
import torch

from velatura.core.protocols import LatentCodec, TextEncoder

from .conftest import Loaded


def test_the_adapters_keep_their_protocols(loaded: Loaded) -> None:
    assert isinstance(loaded.codec, LatentCodec)
    assert isinstance(loaded.text, TextEncoder)
    assert (loaded.codec.latent_channels, loaded.codec.factor) == (4, 8)


def test_images_become_latents_and_images_again(loaded: Loaded) -> None:
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = loaded.codec.encode(image)
    assert latent.shape == (2, 4, 8, 12)
    back = loaded.codec.decode(latent)
    assert back.shape == image.shape
    assert back.min() >= -1
    assert back.max() <= 1


def test_encoding_takes_the_mean_and_draws_nothing(loaded: Loaded) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = torch.get_rng_state()
    torch.testing.assert_close(loaded.codec.encode(image), loaded.codec.encode(image), rtol=0, atol=0)
    assert torch.equal(state, torch.get_rng_state())


def test_the_posterior_is_the_mean_and_a_deviation(loaded: Loaded) -> None:
    """Unscaled, for each picture of a batch its own."""
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = loaded.codec.posterior(image)
    torch.testing.assert_close(loaded.codec.scale(mean), loaded.codec.encode(image), rtol=1e-4, atol=1e-4)
    assert std.shape == mean.shape and bool((std > 0).all())
    torch.testing.assert_close(loaded.codec.posterior(image[1:])[1], std[1:], rtol=1e-3, atol=1e-4)


def test_a_network_of_ours_is_run_in_the_hosts_care(loaded: Loaded) -> None:
    given = torch.nn.Linear(3, 2)
    network = loaded.host.network(given)
    with network.ready(1 << 20) as module:
        assert module(torch.zeros(1, 3)).shape == (1, 2)
    assert network.room() == 0, "on the processor more at once gains nothing"


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 4, 64, 64), (3, 64, 64)])
def test_an_image_of_another_shape_is_refused(loaded: Loaded, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="image"):
        loaded.codec.encode(torch.zeros(shape))


def test_each_prompt_is_a_row_and_words_matter(loaded: Loaded) -> None:
    condition = loaded.text.encode(["a red ball", "a blue ball", "a red ball"])
    assert condition.embedding.shape[0] == 3
    torch.testing.assert_close(condition.embedding[0], condition.embedding[2])
    assert (condition.embedding[0] - condition.embedding[1]).abs().max() > 1e-3


def test_conditions_survive_the_hosts_own_form(loaded: Loaded) -> None:
    condition = loaded.text.encode(["a red ball"])
    back = loaded.host.condition(loaded.host.conditioning(condition))
    torch.testing.assert_close(back.embedding, condition.embedding)
    assert (back.pooled is None) == (condition.pooled is None)
