"""The tokenizer that ships is a CLIP tokenizer in which every word of the world is one token."""

import torch

from velatura.demo import architecture, captions


def test_every_word_is_one_token_of_the_shipped_tokenizer(random_folder):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(random_folder / "tokenizer"))
    for word in captions.WORDS:
        assert len(tokenizer(word)["input_ids"]) == 3, word


def test_the_trainers_tokens_are_the_tokenizers(random_folder):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(random_folder / "tokenizer"))
    prompts = ["", "a red glass ball, warm sunset from the left", captions.background_caption(4, 1)]
    ids = tokenizer(prompts, padding="max_length", max_length=architecture.MAX_TOKENS)["input_ids"]
    assert torch.equal(torch.tensor(ids), architecture.tokenize(prompts))


def test_the_end_token_has_the_highest_id():
    ids = architecture.vocabulary()
    assert ids[architecture.END] == max(ids.values()) == len(ids) - 1 <= 511
