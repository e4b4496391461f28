"""The Sprites model: its networks' configurations, its vocabulary, and a folder of random weights with the same
shapes.

Only scale differs from Stable Diffusion 1: latents of 4 channels at an eighth of the side, epsilon prediction, 1000
steps of the scaled-linear schedule, text by cross attention from a CLIP text transformer. Every width is a multiple
of 32, because the hosts' stock UNet and autoencoder normalise in 32 groups.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from .captions import WORDS

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32


def merges(words: tuple[str, ...] = WORDS) -> list[tuple[str, str]]:
    """Byte-pair merges that make every word one token (Sennrich et al. 2016, trained until nothing is left to merge).

    Training, not left-to-right chains: an encoder applies merges by rank, so only merges learned in rank order over
    all words together are sure to end in whole words.
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))]
    learned: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            return learned
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        spelled = [_merge(word, best) for word in spelled]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in word:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def vocabulary() -> dict[str, int]:
    """Token -> id. The end token has the highest id: CLIP finds the end of a prompt as the largest id in it."""
    tokens = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
    tokens += [token for token in dict.fromkeys(a + b for a, b in merges()) if token not in set(tokens)]
    return {token: index for index, token in enumerate([*tokens, START, END])}


def tokenizer_files() -> dict[str, str]:
    """An ordinary CLIP tokenizer, file name -> text; CLIPTokenizer loads it in both hosts."""
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        "add_prefix_space": False,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    rules = "".join(f"{a} {b}\n" for a, b in merges())
    return {
        "vocab.json": json.dumps(vocabulary(), ensure_ascii=False) + "\n",
        "merges.txt": "#version: 0.2\n" + rules,
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def autoencoder(factor: int = 8, regulariser: Literal["kl", "vq"] = "kl") -> dict[str, Any]:
    """Configuration at a reduction of 4, 8 or 16 per side, with either regulariser (Latent Diffusion, section 3.1)."""
    widths = {4: [32, 64, 96], 8: [32, 32, 64, 96], 16: [32, 32, 64, 96, 96]}.get(factor)
    if widths is None:
        raise ValueError(f"factor: expected 4, 8 or 16, got {factor}")
    if regulariser not in ("kl", "vq"):
        raise ValueError(f"regulariser: expected 'kl' or 'vq', got {regulariser!r}")
    config: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 128,
        "scaling_factor": 1.0,
    }
    return config if regulariser == "kl" else {**config, "num_vq_embeddings": 1024, "vq_embed_dim": 4}


AUTOENCODER = autoencoder()

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [96, 160],
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": [3, 5],  # diffusers' name for the number of heads: 32 channels in each
    "norm_num_groups": 32,
}

_IDS = vocabulary()
TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": len(_IDS),
    "hidden_size": 128,
    "intermediate_size": 512,
    "projection_dim": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TOKENS,
    "hidden_act": "quick_gelu",
    "bos_token_id": _IDS[START],
    "eos_token_id": _IDS[END],
    "pad_token_id": _IDS[END],
}

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def tokenize(prompts: list[str]) -> torch.Tensor:
    """Ids [B, 32] of prompts made of the world's own words, start and end tokens included, padded with the end token.

    ValueError names a word outside the vocabulary: captions have none, and the hosts' tokenizers spell them.
    """
    rows = []
    for prompt in prompts:
        ids = [_IDS[START]]
        for word in prompt.lower().replace(",", " , ").split():
            if f"{word}</w>" not in _IDS:
                raise ValueError(f"prompt: {word!r} is not a word of the Sprites world (in {prompt!r})")
            ids.append(_IDS[f"{word}</w>"])
        ids = [*ids[: MAX_TOKENS - 1], _IDS[END]]
        rows.append(ids + [_IDS[END]] * (MAX_TOKENS - len(ids)))
    return torch.tensor(rows, dtype=torch.long)


def new_modules(seed: int = 0) -> dict[str, nn.Module]:
    """`unet`, `vae` and `text_encoder` with random weights, the same for a seed."""
    from ..hosts.diffusers import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "unet": build.new_unet(UNET),
            "vae": build.new_autoencoder(AUTOENCODER),
            "text_encoder": build.new_text_encoder(TEXT_ENCODER),
        }


def write_random(folder: str | os.PathLike[str], seed: int = 0) -> None:
    """A model folder of the right shapes with random weights: enough for whatever does not look at the picture."""
    from ..hosts.diffusers import build

    build.save_folder(folder, tokenizer_files=tokenizer_files(), scheduler_config=SCHEDULER, **new_modules(seed))
