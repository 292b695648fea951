"""Put low-rank adapters on a policy's attention, which learn alone, and save them in the form that diffusers loads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from drover.common.errors import ConfigError
from drover.common.files import replacing
from drover.common.hub import first_line, quiet_diffusers
from drover.common.protocols import Policy

P = TypeVar("P", bound=Policy)

CARD, WEIGHTS = "README.md", "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def with_lora(policy: P, *, rank: int, alpha: float, targets: Sequence[str] = ATTENTION, seed: int = 0) -> P:
    """Add adapters to every ``targets`` layer, in place: they learn, and the base no longer does. Returns the policy.

    The adapters start without effect, are scaled by alpha / rank, are float32 for a base of any dtype, and start equal
    for equal ``seed``. Raises `ConfigError` when the policy cannot carry adapters or carries some already.
    """
    from peft import LoraConfig

    module: Any = policy.trainable
    _check(module, rank, targets)
    module.requires_grad_(False)
    module.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)))
    generator = torch.Generator().manual_seed(seed)
    adapters = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    for name, weight in sorted(adapters.items()):
        # Drawn on the CPU in the order of names, so that ranks on any device start from the same adapters.
        drawn = torch.randn(weight.shape, generator=generator) / rank
        weight.data = (drawn if ".lora_A." in name else torch.zeros_like(drawn)).to(weight.device)
    module.eval()
    return policy


def save_lora(policy: Policy, folder: str | Path, *, base: str) -> None:
    """Write pytorch_lora_weights.safetensors, which ``pipe.load_lora_weights(folder)`` reads. Whole or not at all.

    ``base`` is the folder or hub id of the pipeline to which the adapters belong. It is written beside them in README.md, as
    model cards name it; `load_lora` needs it there.
    """
    module: Any = policy.trainable
    if not getattr(module, "peft_config", None):
        raise ConfigError("the policy has no adapters to save; build it with with_lora, or use save_pipeline")
    with replacing(folder) as written, quiet_diffusers():
        from diffusers import StableDiffusionPipeline

        # The file for XL has the same form: the UNet's layers by name.
        StableDiffusionPipeline.save_lora_weights(written, unet_lora_layers=_portable_weights(module))
        origin = str(Path(base).resolve()) if Path(base).is_dir() else base
        (written / CARD).write_text(
            f"---\nbase_model: {json.dumps(origin)}\nlibrary_name: diffusers\ntags: [lora]\n---\n"
        )


def base_of(folder: Path) -> str:
    """The folder or hub id of the pipeline to which adapters written by `save_lora` belong. Raises `ConfigError`."""
    card = folder / CARD
    text = card.read_text(errors="replace") if card.is_file() else ""
    found = re.search(r"^base_model: (\".*\")$", text, re.MULTILINE)
    try:
        return str(json.loads(found[1] if found else ""))
    except ValueError:
        raise ConfigError(f"{card} names no base_model; give a folder that a run has written") from None


def load_lora(policy: Policy, folder: Path) -> None:
    """Put adapters written by `save_lora` on the policy, for sampling. Raises `ConfigError` where they do not fit."""
    module: Any = policy.trainable
    try:
        with quiet_diffusers():
            module.load_lora_adapter(str(folder), prefix="unet", weight_name=WEIGHTS, local_files_only=True)
    # The library's errors for damaged or foreign files depend on the file.
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"the adapters of {folder} do not fit their base: {first_line(error)}") from error


def _portable_weights(module: Any) -> dict[str, torch.Tensor]:
    """Adapter weights by diffusers' names, times alpha / rank, because readers without an alpha assume alpha = rank."""
    from peft import get_peft_model_state_dict

    (config,) = module.peft_config.values()
    scale = config.lora_alpha / config.r
    weights = get_peft_model_state_dict(module)
    return {name: (weight * scale if ".lora_B." in name else weight).contiguous() for name, weight in weights.items()}


def _check(module: Any, rank: int, targets: Sequence[str]) -> None:
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, got {rank}")
    if not hasattr(module, "add_adapter"):
        raise ConfigError(f"{type(module).__name__} is no diffusers model and takes no adapters; train it in full")
    if getattr(module, "peft_config", None):
        raise ConfigError("the policy has adapters already; call with_lora once")
    names = [name for name, _ in module.named_modules()]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown or not targets:
        raise ConfigError(f"no layer of {type(module).__name__} is named like {unknown or targets}; set targets")
