"""A CLIP model of random weights, small enough for a laptop's tests, written by transformers itself; an aesthetic head."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from torch import nn

SIZE, DIM, CONTEXT = 64, 768, 77  # pixels, features, tokens
LOGIT_SCALE = 2.718  # the logarithm; its exp changes by 0.6 % when rounded to bfloat16


def vocabulary() -> dict[str, int]:
    """Byte-level BPE as CLIP's: letters, one merged word, and the end as the largest token."""
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    tokens = [*letters, "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


MERGES = [("c", "a"), ("ca", "t</w>")]


def write_clip(folder: Path, seed: int = 0) -> Path:
    """Write the folder and return it."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": len(vocabulary()) - 2, "eos_token_id": len(vocabulary()) - 1}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(vocabulary()), "max_position_embeddings": CONTEXT},
        vision_config={**tower, "image_size": SIZE, "patch_size": 16},
        projection_dim=DIM,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for weight in model.parameters():
            if weight.ndim > 1:  # wide enough that pictures and prompts lie far apart
                weight.data.normal_(std=0.3)
        model.logit_scale.data.fill_(LOGIT_SCALE)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary(), merges=MERGES, model_max_length=CONTEXT).save_pretrained(folder)
    size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


def official_head() -> nn.Module:
    """The published predictor as its authors build it, with random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = nn.Sequential(
            nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.data.normal_(std=2 / layer.in_features**0.5)
    return nn.ModuleDict({"layers": layers})
