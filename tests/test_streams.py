"""Random numbers of a seed: the same in threads and beside other code that draws some."""

import threading

import kornia.augmentation as K
import pytest
import torch

import clipag_plugins as clip
from clipag_plugins.sampler import sample, settings_for
from clipag_plugins.streams import draw_from

QUIET = clip.RunOptions("float32", progress=False)


def draw(model, seed):
    settings = settings_for(model, steps=2, tries=2)
    return sample(["a red apple"], model, settings, seed=seed, size=48, options=QUIET).images


@pytest.mark.slow
def test_eight_threads_draw_what_each_draws_alone(model):
    alone = [draw(model, seed) for seed in range(8)]
    together = [None] * 8
    done = threading.Event()

    def disturb():
        while not done.is_set():
            torch.rand(5)

    def work(seed):
        together[seed] = draw(model, seed)

    disturbance = threading.Thread(target=disturb)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    disturbance.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    disturbance.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_the_global_generator_is_left_alone(model):
    state = torch.get_rng_state()
    draw(model, 3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "random",
    [
        lambda: torch.rand(3),
        lambda: torch.randn(2, 2),
        lambda: torch.randperm(9),
        lambda: torch.randint(9, (4,)),
        lambda: torch.empty(5).uniform_(1, 2),
        lambda: torch.empty(5).normal_(),
        lambda: torch.normal(torch.zeros(3), 2.0),
        lambda: torch.bernoulli(torch.full((9,), 0.5)),
        lambda: torch.distributions.Beta(torch.tensor(2.0), torch.tensor(3.0)).sample(),
        lambda: torch.nn.Linear(3, 3).weight.detach(),
        lambda: K.RandomAffine(20.0, (0.1, 0.1), p=1.0)(torch.ones(2, 3, 9, 9)),
        lambda: K.ColorJiggle(0.5, 0.5, 0.5, p=1.0)(torch.ones(2, 3, 9, 9) / 3),
        lambda: K.RandomErasing(p=0.5)(torch.ones(4, 3, 9, 9)),
    ],
)
def test_a_stream_gives_the_numbers_of_the_global_generator(random):
    torch.manual_seed(7)
    expected = random()
    state = torch.get_rng_state()
    with draw_from(torch.Generator().manual_seed(7)):
        drawn = random()
    assert torch.equal(drawn, expected)
    assert torch.equal(state, torch.get_rng_state())
