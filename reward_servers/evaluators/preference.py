"""A small model of raters' preferences, and its fit to pairs by Bradley-Terry. Knows no reward and no world.

P(A preferred to B | prompt) = sigmoid(score(prompt, A) - score(prompt, B)) (Bradley and Terry 1952; for reward models
ImageReward, arXiv 2304.05977). Only differences within a prompt are in the data; a small penalty on the pair's mean score
centres each prompt near 0 (arXiv 2312.09244), so that scores of different prompts compare.

Axes: B batch, L words, C channels, H W picture.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drover.common.errors import ConfigError, TrainingDiverged
from drover.common.files import write_whole
from drover.reward_servers.evaluators.pairs import Pairs, resized

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.json"
FORMAT = "drover-preference-1"
PADDING, UNKNOWN = 0, 1  # ids; those of the vocabulary follow
LONGEST = 64  # the model reads so many words of a prompt
MOST_WORDS = 8192
FEWEST_PAIRS = 20
CENTRING = 0.01
WORD_DROPOUT = 0.02  # share of training words that become UNKNOWN, so that its embedding is trained
BATCH = 256  # pictures scored at once
BATCH_PAIRS = 64  # pairs of a training step


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of a preference model: pictures of ``side`` pixels, ``width`` first channels, ``text`` numbers a word."""

    side: int = 32
    width: int = 24
    text: int = 32


class PreferenceModel(nn.Module):
    """Scores pictures by a CNN whose channels the prompt scales and shifts. About 78,000 parameters at the default size."""

    def __init__(self, vocabulary: Sequence[str], size: Size):
        super().__init__()
        self.vocabulary, self.size = tuple(vocabulary), size
        self._ids = {word: index for index, word in enumerate(self.vocabulary, start=2)}
        channels = (5, size.width, 2 * size.width, 3 * size.width)
        self.words = nn.Embedding(2 + len(self.vocabulary), size.text, padding_idx=PADDING)
        self.phrases = nn.Conv1d(size.text, 2 * size.text, 3, padding=1)  # "red circle", not only "red" and "circle"
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in itertools.pairwise(channels)
        )
        self.modulations = nn.ModuleList(nn.Linear(2 * size.text, 2 * after) for after in channels[1:])
        self.head = nn.Sequential(nn.Linear(channels[-1] + 2 * size.text, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, ids_BL: Tensor, pictures_BCHW: Tensor) -> Tensor:
        """[B] scores, in log-odds of the raters' choice. ``pictures`` are RGB in [0, 1]."""
        known_BL1 = (ids_BL != PADDING)[..., None]
        phrases_BLC = F.gelu(self.phrases(self.words(ids_BL).transpose(1, 2))).transpose(1, 2)
        text_BC = (phrases_BLC * known_BL1).sum(1) / known_BL1.sum(1).clamp(min=1)
        place = torch.linspace(-1, 1, self.size.side, device=pictures_BCHW.device)
        places_CHW = torch.stack(torch.meshgrid(place, place, indexing="ij"))
        x = torch.cat([2 * pictures_BCHW - 1, places_CHW.expand(len(pictures_BCHW), -1, -1, -1)], 1)
        for convolution, modulation in zip(self.convolutions, self.modulations, strict=True):
            scale_BC, shift_BC = modulation(text_BC).chunk(2, 1)
            x = F.gelu(convolution(x) * (1 + scale_BC[..., None, None]) + shift_BC[..., None, None])
        return self.head(torch.cat([x.mean((2, 3)), text_BC], 1))[:, 0]

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """[B, L] word ids, padded; words outside the vocabulary are `UNKNOWN`."""
        rows = [[self._ids.get(word, UNKNOWN) for word in split(prompt)] for prompt in prompts]
        length = max(1, *map(len, rows)) if rows else 1
        return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows]).view(len(rows), length)

    def knows(self, prompt: str) -> bool:
        """Whether the vocabulary has any word of the prompt."""
        return any(word in self._ids for word in split(prompt))

    @torch.no_grad()
    def score(self, prompts: Sequence[str], media: np.ndarray) -> np.ndarray:
        """[N] float32 scores of pictures [N, H, W, 3] uint8 of any size."""
        device = self.words.weight.device
        parts = []
        for start in range(0, len(media), BATCH):
            rows = slice(start, start + BATCH)
            pictures = as_pictures(resized(media[rows], self.size.side), device)
            parts.append(self(self.ids(prompts[rows]).to(device), pictures).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def save(self, folder: Path | str) -> None:
        """Write weights, sizes and vocabulary, for `load`. Raises `CheckpointError` for an error of the disk."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_whole(folder / WEIGHTS, save(tensors))
        sizes = {"side": self.size.side, "width": self.size.width, "text": self.size.text}
        write_whole(folder / CONFIG, f"{json.dumps({'format': FORMAT, **sizes}, indent=2)}\n".encode())
        words = json.dumps(self.vocabulary, indent=0, ensure_ascii=False)
        write_whole(folder / VOCABULARY, f"{words}\n".encode())


def load(folder: Path | str, device: str = "cpu") -> PreferenceModel:
    """The model that `PreferenceModel.save` wrote, ready to score. Raises `ConfigError` for any other folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    missing = [name for name in (WEIGHTS, CONFIG, VOCABULARY) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} lacks {', '.join(missing)}; give a folder that fit_evaluator(...).model.save(folder) wrote."
        )
    try:
        config, vocabulary = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (CONFIG, VOCABULARY))
        if config.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        model = PreferenceModel([str(word) for word in vocabulary], Size(**config))
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(f"{folder} is not a preference model ({cause}); fit and save it again.") from error
    return model.to(device).eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Epoch:
    """The result of one pass of the fit: mean losses in nats, and held-out agreement with the raters."""

    number: int
    loss: float
    held_out_loss: float
    held_out_accuracy: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """The fitted model of the best epoch. ``accuracy``: the share of held-out raters who chose as the model does."""

    model: PreferenceModel
    accuracy: float
    loss: float
    held_out: int
    epochs: int


def fit_evaluator(
    pairs: Pairs,
    *,
    size: Size | None = None,
    seed: int = 0,
    epochs: int = 20,
    patience: int = 4,
    learning_rate: float = 2e-3,
    device: str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
) -> Fitted:
    """Fit a `PreferenceModel` until ``patience`` epochs bring no better held-out loss, at most ``epochs``.

    A tenth is held out, by prompt where there are at least ten prompts: pairs of one prompt often share pictures.
    Raises `ConfigError` for fewer than 20 pairs, and `TrainingDiverged` for a loss that is not finite.
    """
    if len(pairs) < FEWEST_PAIRS:
        raise ConfigError(f"{len(pairs)} pairs are too few to fit and to judge a model; give at least {FEWEST_PAIRS}.")
    began = time.monotonic()
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = _split(pairs.prompts, rng)
    with torch.random.fork_rng(
        devices=[]
    ):  # initial weights come from the seed, and the caller's random state does not change
        torch.manual_seed(seed)
        model = PreferenceModel(_vocabulary([pairs.prompts[row] for row in train]), size or Size()).to(device)
    data = _Data(model, pairs, device)
    steps = math.ceil(len(train) / BATCH_PAIRS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps, pct_start=0.1)
    best, best_state = Fitted(model, 0.0, math.inf, len(held_out), 0), model.state_dict()
    for number in range(1, epochs + 1):
        total = 0.0
        model.train()
        for rows in torch.from_numpy(train)[torch.randperm(len(train), generator=generator)].split(BATCH_PAIRS):
            a, b = data.scores(rows, generator)
            loss = F.binary_cross_entropy_with_logits(a - b, data.labels[rows])
            if not torch.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss is {loss.item()} in epoch {number}; lower learning_rate={learning_rate}."
                )
            total += loss.item() * len(rows)
            optimizer.zero_grad()
            (loss + CENTRING * ((a + b) / 2).square().mean()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        held_out_loss, accuracy = data.judge(torch.from_numpy(held_out))
        if progress is not None:
            progress(Epoch(number, total / len(train), held_out_loss, accuracy, time.monotonic() - began))
        if held_out_loss < best.loss:
            best, best_state = (
                Fitted(model, accuracy, held_out_loss, len(held_out), number),
                copy.deepcopy(model.state_dict()),
            )
        elif number - best.epochs >= patience:
            break
    model.load_state_dict(best_state)
    model.eval().requires_grad_(False)
    return best


class _Data:
    """The pairs in the model's input form. Pictures stay uint8 until they are scored."""

    def __init__(self, model: PreferenceModel, pairs: Pairs, device: str):
        self.model, self.device = model, torch.device(device)
        self.ids = model.ids(pairs.prompts)
        self.pictures = [resized(side.pixels, model.size.side) for side in (pairs.a, pairs.b)]
        self.labels = torch.from_numpy(pairs.labels.astype(np.float32)).to(device)

    def scores(self, rows: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """([B] scores of A, [B] scores of B). With a generator some words become unknown, the same for both."""
        ids = self.ids[rows]
        if generator is not None:
            dropped = (torch.rand(ids.shape, generator=generator) < WORD_DROPOUT) & (ids != PADDING)
            ids = ids.masked_fill(dropped, UNKNOWN)
        pictures = [as_pictures(side[rows.numpy()], self.device) for side in self.pictures]
        a, b = self.model(ids.to(self.device).repeat(2, 1), torch.cat(pictures)).chunk(2)
        return a, b

    @torch.no_grad()
    def judge(self, rows: Tensor) -> tuple[float, float]:
        """(mean loss in nats, share of raters who chose as the model does); a tie is half right."""
        self.model.eval()
        scored = [self.scores(part) for part in rows.split(BATCH)]
        margins, labels = torch.cat([a - b for a, b in scored]), self.labels[rows]
        chosen = 0.5 + 0.5 * margins.sign()
        accuracy = (chosen * labels + (1 - chosen) * (1 - labels)).mean()
        return F.binary_cross_entropy_with_logits(margins, labels).item(), accuracy.item()


def as_pictures(media: np.ndarray, device: torch.device) -> Tensor:
    """[B, 3, H, W] in [0, 1] of uint8 [B, H, W, 3]."""
    return torch.tensor(media, device=device).permute(0, 3, 1, 2).float() / 255


def split(prompt: str) -> list[str]:
    """The words of a prompt in lower case, at most `LONGEST`."""
    return re.findall(r"\w+", prompt.lower())[:LONGEST]


def _vocabulary(prompts: Sequence[str]) -> list[str]:
    """The words of the prompts, the most common first."""
    counts = Counter(word for prompt in prompts for word in split(prompt))
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS]]


def _split(prompts: Sequence[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows to fit, rows to judge): a tenth of the prompts is for judging, or a tenth of the pairs if prompts are few."""
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < 10:
        order = rng.permutation(len(prompts))
        return np.sort(order[len(order) // 10 :]), np.sort(order[: len(order) // 10])
    chosen = {distinct[index] for index in rng.permutation(len(distinct))[: math.ceil(len(distinct) / 10)]}
    judged = np.array([prompt in chosen for prompt in prompts])
    return np.flatnonzero(~judged), np.flatnonzero(judged)
