"""Drawn tokens, against transformers' own temperature and nucleus."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from bitlora.engine.generation.sampling import NextToken, Sampling, choose

DRAWS = 4000


def logits(seed=0, size=40):
    return 2 * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (0.7, 0.9), (2.0, 0.5), (1.3, 0.05)])
def test_tokens_are_drawn_as_often_as_transformers_has_it(temperature, top_p):
    given = logits()
    kept = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, given[None]))[0].softmax(-1).numpy()
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=5)
    counts = np.bincount([sampling.draw(given, place) for place in range(DRAWS)], minlength=len(given))
    assert counts[kept == 0].sum() == 0
    often = kept * DRAWS >= 5
    seen, expected = (np.append(each[often], each[~often].sum()) for each in (counts, kept * DRAWS))
    if len(seen) > 2:
        assert chisquare(seen[expected > 0], expected[expected > 0]).pvalue > 0.01
    else:
        assert counts[kept.argmax()] == DRAWS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [{"temperature": 1e-300}, {"temperature": 2.0, "top_p": 0.0}])
def test_at_their_ends_it_is_the_likeliest(how, dtype):
    given = (50 * logits(1)).to(dtype)
    assert {Sampling(**how, seed=seed).draw(given, 3) for seed in range(20)} == {int(given.argmax())}


def test_seeds_and_places_draw_apart_and_rows_that_do_not_draw_have_the_likeliest():
    given = logits(2)
    by_seed = [Sampling(temperature=2.0, seed=seed).draw(given, 0) for seed in range(30)]
    by_place = [Sampling(temperature=2.0, seed=0).draw(given, place) for place in range(30)]
    assert len({*by_seed}) > 5
    assert len({*by_place}) > 5
    one = Sampling(temperature=2.0, seed=4)
    wanted = [NextToken(None, 0), NextToken(one, 4), NextToken(None, 4)]
    assert choose(given.repeat(3, 1), wanted) == [int(given.argmax()), one.draw(given, 4), int(given.argmax())]
