import itertools

import numpy as np
import pytest
import torch

from drover.worlds.fitting import Budget, fit
from drover.worlds.shapes import prompts
from drover.worlds.shapes.build import train_pipeline
from drover.worlds.shapes.scenes import Scene, Thing

STEPS_180 = Budget(minutes=3, learning_rate=0.1)


def slope() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(1, 1)


def fitted(module: torch.nn.Linear, budget: Budget, checkpoint) -> torch.nn.Linear:
    """Fit y = 3 x + 1 by a clock on which every step takes a second."""

    def loss(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(64, 1, generator=generator)
        return (module(x) - 3 * x - 1).square().mean()

    seconds = itertools.count()
    return fit(module, loss, budget, checkpoint, clock=lambda: float(next(seconds)))


def steps(checkpoint) -> int:
    return torch.load(checkpoint, weights_only=True)["step"]


def test_180_steps_fit_a_line_and_return_averaged_weights(tmp_path):
    module = slope()
    average = fitted(module, STEPS_180, tmp_path / "line.pt")
    assert steps(tmp_path / "line.pt") == 180
    assert average is not module
    assert average.weight.item() == pytest.approx(3, abs=0.3)
    assert average.bias.item() == pytest.approx(1, abs=0.3)


def test_a_used_up_budget_returns_the_saved_weights_without_another_step(tmp_path):
    first = fitted(slope(), STEPS_180, tmp_path / "line.pt")
    again = fitted(slope(), STEPS_180, tmp_path / "line.pt")
    assert torch.equal(first.weight, again.weight)
    assert steps(tmp_path / "line.pt") == 180


def test_a_larger_budget_continues_from_the_checkpoint(tmp_path):
    fitted(slope(), STEPS_180, tmp_path / "line.pt")
    fitted(slope(), Budget(minutes=4, learning_rate=0.1), tmp_path / "line.pt")
    assert steps(tmp_path / "line.pt") == 240


@pytest.fixture(scope="module")
def data() -> train_pipeline.Data:
    return train_pipeline.make_data(1500)


def test_label_shares_of_a_seen_caption_are_distributions_over_labels(data):
    shares = train_pipeline.label_shares(data)
    seen = data.captions.unique()
    assert shares.shape == (1385, 64, train_pipeline.LABELS)
    assert shares[seen].sum(-1).allclose(torch.ones(len(seen), 64))


def test_shares_tell_captions_beside_from_captions_above(data):
    shares = train_pipeline.label_shares(data).view(-1, 8, 8, train_pipeline.LABELS)[..., 1:19].sum(-1)
    links = {text: prompts.parse(text).link for text in data.texts[1:]}
    beside, stacked = (
        shares[[data.texts.index(text) for text, link in links.items() if link in pair]].nanmean(0)
        for pair in (("left of", "right of"), ("above", "below"))
    )
    assert beside[3:5, :2].mean() > 2 * stacked[3:5, :2].mean()


def test_a_label_map_marks_the_cells_a_thing_covers():
    labels = train_pipeline.label_map(Scene((Thing("square", "red", 8.0, 8.0, 5.0),)))
    assert labels.shape == (16, 16)
    assert np.count_nonzero(labels) * 4 == pytest.approx(81, abs=25)
    assert labels[4, 4] == 1 + prompts.KINDS.index(("square", "red"))


def test_a_tenth_of_the_captions_is_dropped():
    captions = train_pipeline.drop_captions(torch.ones(20_000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert 1 - captions.float().mean().item() == pytest.approx(0.1, abs=0.01)
