import pytest
import torch

from drover.common import seeds
from drover.common.diffusion.noising import DiscreteSchedule, FlowSchedule
from drover.common.diffusion.time_laws import LogitNormal, OneOf, Uniform
from drover.common.errors import ConfigError

SCHEDULE = DiscreteSchedule.scaled_linear()
LAWS = [Uniform(), LogitNormal(), LogitNormal(mean=1.0, std=0.5), OneOf(249, 499, 749)]


def drawn(law, count=4000, schedule=SCHEDULE):
    return law.draw(schedule, seeds.generators(0, "times", 0, range(count)))


@pytest.mark.parametrize("law", LAWS)
def test_a_time_lies_on_the_path_and_depends_on_its_own_generator_alone(law):
    times = drawn(law)
    assert times.shape == (4000,) and times.dtype == torch.int64
    assert times.min() >= 0 and times.max() <= 999
    assert torch.equal(law.draw(SCHEDULE, seeds.generators(0, "times", 0, [7, 3])), times[[7, 3]])


def test_uniform_draws_are_those_of_one_randint_each():
    one_by_one = [torch.randint(1000, (), generator=g) for g in seeds.generators(0, "times", 0, range(5))]
    assert drawn(Uniform(), 5).tolist() == [int(time) for time in one_by_one]
    assert drawn(Uniform()).float().mean().item() == pytest.approx(499.5, abs=15)


def test_a_logit_normal_has_half_its_times_below_the_sigmoid_of_its_mean():
    for mean, middle in ((0.0, 500), (1.0, 731), (-1.0, 269)):  # sigmoid(1) = 0.731
        below = (drawn(LogitNormal(mean=mean)) < middle).float().mean().item()
        assert below == pytest.approx(0.5, abs=0.03)
    assert drawn(LogitNormal(mean=200.0), 10, FlowSchedule()).tolist() == [999] * 10


def test_one_of_three_times_is_drawn_a_third_of_the_time():
    times = drawn(OneOf(249, 499, 749))
    assert {int(time): round((times == time).float().mean().item(), 1) for time in times.unique()} == {
        249: 0.3, 499: 0.3, 749: 0.3,
    }  # fmt: skip
    assert OneOf(249, 499) == OneOf(249, 499) != OneOf(249)


@pytest.mark.parametrize(
    "make", [OneOf, lambda: OneOf(-1), lambda: LogitNormal(std=0), lambda: LogitNormal(float("nan"))]
)
def test_impossible_laws_are_refused(make):
    with pytest.raises(ConfigError, match="got"):
        make()


def test_a_time_past_the_end_of_the_path_is_refused():
    with pytest.raises(ConfigError, match="names a time past 999"):
        drawn(OneOf(249, 1000))
