"""A detector and a classifier of random weights, small enough for a laptop's tests, written by transformers itself."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.reward_servers.rewards.tiny_clip import MERGES, vocabulary

TONES = ("dark", "medium dark", "medium light", "light")


def write_owl(folder: Path, kind: str) -> Path:
    """Write an OWL-ViT or OWLv2 (``kind`` "OwlViT" or "Owlv2") that finds every name asked for somewhere in the picture."""
    import transformers

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(vocabulary()), "eos_token_id": len(vocabulary()) - 1}
    config_class, model_class, processor_class = (
        getattr(transformers, f"{kind}{part}") for part in ("Config", "ForObjectDetection", "ImageProcessorPil")
    )
    vision = {**tower, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = model_class(config_class(text_config={**tower, **text}, vision_config=vision, projection_dim=32))
    for weight in model.parameters():
        if weight.ndim > 1:  # wide enough that pictures and names lie far apart
            weight.data.normal_(std=0.2)
    model.save_pretrained(folder)
    processor_class(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary(), merges=MERGES, model_max_length=16)
    tokenizer.save_pretrained(folder)
    return folder


def write_classifier(folder: Path) -> Path:
    """Write a vision transformer that sees one of `TONES` in any picture."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**sizes, image_size=32, patch_size=8, id2label=dict(enumerate(TONES)), initializer_range=0.5)
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
