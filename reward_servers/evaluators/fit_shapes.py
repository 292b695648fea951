"""Fit the preference model of the shapes world: `python -m drover.reward_servers.evaluators.fit_shapes --out DIR`.

Raters compare samples of the pipeline at three guidances, the same samples enlarged, and rendered pictures of every size,
place and tone. They are the pictures that a policy draws now, and those that it may draw after learning. The prompts are of
both splits, as in pretraining.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch

from drover.common.media.pictures import Pictures
from drover.reward_servers.evaluators.pairs import Pairs
from drover.reward_servers.evaluators.preference import Epoch, PreferenceModel, fit_evaluator
from drover.worlds.shapes import PIPELINE, PREFERENCE, raters
from drover.worlds.shapes.build import evaluate
from drover.worlds.shapes.taste import taste

SEED = 20261121
GUIDANCES = (1.0, 2.0, 3.0)
SAMPLED_PROMPTS = 128  # per guidance
SAMPLES = 4  # pictures of each prompt, compared as drawn and enlarged
RENDERED_PROMPTS = 2400
RENDERED = 4
RATERS = 3  # for each pair
FRESH_PROMPTS, FRESH_SAMPLES = 32, 8  # for judging the fit

log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PREFERENCE)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    rng = np.random.default_rng(SEED)
    groups = sampled_groups(rng) + rendered_groups(rng)
    pairs, ceiling = compare(rng, groups)
    log.info(
        "%d pairs in %.0f s; %.3f of the raters prefer the better picture",
        len(pairs),
        time.monotonic() - began,
        ceiling,
    )
    fitted = fit_evaluator(pairs, seed=SEED, epochs=options.epochs, progress=tell)
    fitted.model.save(options.out)
    log.info("held-out accuracy %.3f over %d pairs, epoch %d", fitted.accuracy, fitted.held_out, fitted.epochs)
    log.info("%s", json.dumps(judge(fitted.model)))


def tell(epoch: Epoch) -> None:
    log.info(
        "epoch %d: loss %.4f, held-out loss %.4f, accuracy %.3f, %.0f s",
        *(epoch.number, epoch.loss, epoch.held_out_loss, epoch.held_out_accuracy, epoch.elapsed_s),
    )


Group = tuple[str, list[np.ndarray]]  # a prompt and pictures for it


def sampled_groups(rng: np.random.Generator) -> list[Group]:
    pipeline = evaluate.load(PIPELINE)
    groups = []
    for guidance in GUIDANCES:
        texts = [raters.random_prompt(rng) for _ in range(SAMPLED_PROMPTS)]
        sampler = evaluate.Sampler(10, 1.0, guidance)
        drawn = evaluate.draw(pipeline, [text for text in texts for _ in range(SAMPLES)], sampler, SEED)
        for text, pictures in zip(texts, drawn.reshape(SAMPLED_PROMPTS, SAMPLES, *drawn.shape[1:]), strict=True):
            larger = [raters.zoomed(rng, picture) for picture in pictures]
            rendered = [raters.varied(rng, text) for _ in range(SAMPLES // 2)]
            groups.append((text, [*pictures, *larger, *rendered]))
        log.info("sampled at guidance %g", guidance)
    return groups


def rendered_groups(rng: np.random.Generator) -> list[Group]:
    texts = [raters.random_prompt(rng) for _ in range(RENDERED_PROMPTS)]
    return [(text, [raters.varied(rng, text) for _ in range(RENDERED)]) for text in texts]


def compare(rng: np.random.Generator, groups: list[Group]) -> tuple[Pairs, float]:
    """(pairs judged by `RATERS` raters, share of raters who prefer the better picture). Each picture is in four pairs."""
    texts, chosen, shares = [], [], []
    for text, pictures in groups:
        liked = [taste(text, picture) for picture in pictures]
        order = rng.permutation(len(pictures))
        for apart in (1, 2):
            for first, second in zip(order, np.roll(order, apart), strict=True):
                texts.append(text)
                chosen.append((pictures[first], pictures[second]))
                shares.append(raters.preferred(liked[first], liked[second]))
    a, b = (np.stack(side) for side in zip(*chosen, strict=True))
    labels = (rng.binomial(RATERS, shares) / RATERS).astype(np.float32)
    return Pairs(tuple(texts), Pictures(a), Pictures(b), labels), float(
        np.mean([max(share, 1 - share) for share in shares])
    )


def judge(model: PreferenceModel) -> dict[str, float]:
    """Rank correlation with the truth on fresh samples at guidance 1, over all and within a prompt, and the time taken."""
    rng = np.random.default_rng(SEED + 1)
    texts = [text for text in (raters.random_prompt(rng) for _ in range(FRESH_PROMPTS)) for _ in range(FRESH_SAMPLES)]
    pictures = evaluate.draw(evaluate.load(PIPELINE), texts, evaluate.Sampler(10, 1.0, 1.0), SEED + 1)
    began = time.monotonic()
    scores = model.score(texts, pictures)
    elapsed_s = time.monotonic() - began
    truth = np.array([taste(text, picture) for text, picture in zip(texts, pictures, strict=True)])
    within = [
        rank_correlation(scores[start : start + FRESH_SAMPLES], truth[start : start + FRESH_SAMPLES])
        for start in range(0, len(texts), FRESH_SAMPLES)
    ]
    return {
        "spearman": round(rank_correlation(scores, truth), 3),
        "spearman_within_prompt": round(float(np.mean(within)), 3),
        "ms_per_image": round(1000 * elapsed_s / len(texts), 3),
        "taste_mean": round(float(truth.mean()), 3),
    }


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays without ties."""
    ranks, other_ranks = (values.argsort().argsort().astype(np.float64) for values in (first, second))
    return float(np.corrcoef(ranks, other_ranks)[0, 1])


if __name__ == "__main__":
    main()
