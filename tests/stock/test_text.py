"""Prompt syntax, windows and encoding. Beside ComfyUI's own: tests/comfyui/test_stock.py."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from velatura.core.lora import LowRank, LowRankDeltas, Target
from velatura.hosts.diffusers.clip_vocabulary import tokenizer_for, vocabulary
from velatura.hosts.diffusers.text import weighted_pieces, windows


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
        ("(a:1.5) b", [("a", 1.5), (" b", 1.0)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 2.0), (" c", 0.5)]),
        ("(a:b)", [("a:b", 1.1)]),
        (r"\(a\) (b\):1.2)", [("(a) ", 1.0), ("b)", 1.2)]),
        ("(open", [("(open", 1.0)]),
        ("", []),
    ],
)
def test_weights_are_read_from_parentheses(text, pieces):
    found = weighted_pieces(text)
    assert [each for each, _ in found] == [each for each, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@given(st.text(st.characters(exclude_characters="()\\\0\1\2"), min_size=1))
def test_text_without_parentheses_is_one_plain_piece(text):
    assert weighted_pieces(text) == [(text, 1.0)]


@given(st.text("ab(): 1.2\\"))
def test_any_text_can_be_read(text):
    assert all(isinstance(weight, float) for _, weight in weighted_pieces(text))


GROUPS = st.lists(st.lists(st.tuples(st.integers(10, 99), st.floats(0.1, 2)), max_size=40), max_size=12)


@given(GROUPS, st.integers(12, 77))
def test_windows_are_full_and_lose_nothing(groups, length):
    found = windows(groups, length, start=1, end=2, pad=3)
    assert all(len(window) == length and window[0] == (1, 1.0) for window in found)
    inside = []
    for window in found:
        end = window.index((2, 1.0))
        inside += window[1:end]
        assert set(window[end + 1 :]) <= {(3, 1.0)}, "only padding after the end"
    assert inside == [token for group in groups for token in group]


def test_a_short_piece_is_not_broken_and_a_long_one_is():
    filler, short, long = [(10, 1.0)] * 8, [(11, 1.0)] * 4, [(12, 1.0)] * 9
    assert [window.count((11, 1.0)) for window in windows([filler, short], 12, 1, 2, 3)] == [0, 4]
    assert [window.count((12, 1.0)) for window in windows([filler, long], 12, 1, 2, 3)] == [2, 7]


@pytest.fixture(scope="module")
def clip(random_folder):
    from velatura.hosts.diffusers.checkpoints import load_folder

    return load_folder(random_folder)[1]


def test_an_embedding_is_what_the_encoder_says(clip):
    tower = clip.towers[0]
    ids = tower.tokenizer("a red ball", padding="max_length", max_length=tower.length, return_tensors="pt")["input_ids"]
    expected = tower.encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(clip.encode(["a red ball"]).embedding, expected)


def test_a_weight_moves_away_from_the_empty_prompt(clip):
    plain, weighted, empty = (clip.encode([text]).embedding for text in ("red", "(red:1.5)", ""))
    expected = plain.clone()
    expected[:, 1] = empty[:, 1] + 1.5 * (plain[:, 1] - empty[:, 1])
    torch.testing.assert_close(weighted, expected)
    torch.testing.assert_close(clip.encode(["(red:1.0)"]).embedding, plain)


def test_a_long_prompt_has_several_windows_and_a_batch_one_length(clip):
    length = clip.towers[0].length
    long = clip.encode(["red " * 40])
    assert long.embedding.shape[1] == 2 * length
    both = clip.encode(["red " * 40, "red"])
    assert both.embedding.shape[:2] == (2, 2 * length) and both.pooled.shape[0] == 2
    torch.testing.assert_close(both.embedding[:1], long.embedding)
    torch.testing.assert_close(both.embedding[1:, :length], clip.encode(["red"]).embedding)
    torch.testing.assert_close(both.embedding[1:, length:], clip.encode([""]).embedding)


def test_the_layer_before_the_last_is_another(clip):
    one, two = clip.encode(["red"]), clip.stopping_at(-2).encode(["red"])
    assert one.embedding.shape == two.embedding.shape
    assert not torch.allclose(one.embedding, two.embedding)
    torch.testing.assert_close(one.pooled, two.pooled)


@pytest.mark.parametrize("prefix", ["text_model_", ""])
def test_a_lora_changes_a_new_encoder_only(clip, prefix):
    hidden = clip.towers[0].encoder.config.hidden_size
    if not prefix and hasattr(clip.towers[0].encoder, "text_model"):
        pytest.skip("this transformers keeps text_model in its names")
    generator = torch.Generator().manual_seed(0)
    low = LowRank(torch.randn(hidden, 2, generator=generator), torch.randn(2, hidden, generator=generator))
    before = clip.encode(["red"]).embedding
    changed = clip.with_lora(LowRankDeltas({Target("text", f"{prefix}encoder_layers_0_self_attn_q_proj"): low}), 0.5)
    assert not torch.allclose(changed.encode(["red"]).embedding, before)
    assert torch.equal(clip.encode(["red"]).embedding, before)
    assert torch.equal(
        clip.with_lora(LowRankDeltas({Target("unet", "conv_in"): low})).encode(["red"]).embedding, before
    )


@pytest.mark.parametrize("prompts", ["red", []])
def test_prompts_are_a_list(clip, prompts):
    with pytest.raises(ValueError, match="prompts: expected a list"):
        clip.encode(prompts)


def test_textual_inversion_is_refused(clip):
    with pytest.raises(ValueError, match="text: this runtime does not read embedding:NAME"):
        clip.encode(["a cat, embedding:easynegative"])


def test_the_clip_vocabulary_is_built_from_its_merges():
    words = vocabulary(["a b", "ab c</w>"])
    assert len(words) == 2 * 256 + 2 + 2
    assert words["!"] == 0 and words["!</w>"] == 256
    assert words["ab"] == 512 and words["abc</w>"] == 513 and words["<|endoftext|>"] == 515


def test_clips_own_tokenizer_from_an_installed_package():
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("no package with CLIP's vocabulary is installed (pip install --no-deps open_clip_torch)")
    ids = tokenizer_for()("a photo of a cat")["input_ids"]
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_a_missing_vocabulary_says_what_to_install(tmp_path, monkeypatch):
    from velatura.hosts.diffusers import clip_vocabulary

    monkeypatch.setattr(clip_vocabulary, "_PACKAGES", ())
    clip_vocabulary._clip.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps open_clip_torch"):
        tokenizer_for(tmp_path)
