"""The search for the cheapest network: against curves whose answer is known, exact and noisy."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l0prune.quality.bound import Quality
from l0prune.quality.search import NARROW, Search, Try, cheapest_kept, next_cheaper, rising

ACCURACY = Quality("accuracy", True, 91.0)


def searched(score_of, *, quality=ACCURACY, dense=91.73, least=0.001, error=None, n_runs=5):
    """All tries of a search, in order, on a curve from share to score."""
    search, tries = Search(quality, dense, least, error), []
    while len(tries) < n_runs and (keep := search.next_keep(tries)) is not None:
        assert least <= keep < 1
        assert keep not in [tried.keep for tried in tries]
        tries.append(Try(keep, score_of(keep)))
    return tries


def falling(loss, power):
    """A curve that loses `loss` points at half of the cost."""
    return lambda keep: 91.73 - loss * (-math.log2(keep)) ** power


@given(loss=st.floats(0.05, 3.0), power=st.floats(1.0, 3.0))
def test_a_curve_that_falls_is_searched_to_within_a_few_per_cent(loss, power):
    answer = 2 ** -((0.73 / loss) ** (1 / power))
    tries = searched(falling(loss, power), n_runs=9)
    best = cheapest_kept(ACCURACY, tries)

    if best is None:
        assert answer > 0.85
    else:
        assert answer <= best.keep * 1.001
        assert best.keep <= max(1.1 * answer, 0.0011)


def test_five_runs_are_enough_for_a_curve_as_networks_have_it():
    for loss in (0.4, 0.9, 1.5):
        best = cheapest_kept(ACCURACY, searched(falling(loss, 2.0)))

        assert best is not None
        assert best.keep < 1.1 * 2 ** -math.sqrt(0.73 / loss)


@given(seed=st.integers(0, 10**6), n_runs=st.integers(1, 12))
def test_whatever_the_scores_are_the_answer_keeps_the_quality_and_the_next_cheaper_does_not(seed, n_runs):
    import random

    draw = random.Random(seed)
    tries = searched(lambda keep: 91.3 + 2 * math.log(keep) + draw.gauss(0, 0.5), n_runs=n_runs, error=0.3)
    best = cheapest_kept(ACCURACY, tries)
    cheaper = next_cheaper(tries, best)

    assert 1 <= len(tries) <= n_runs
    assert best is None or best.score >= 91
    assert cheaper is None or cheaper.score < 91
    assert best is None or all(tried.score < 91 for tried in tries if tried.keep < best.keep)


def test_a_quality_that_everything_keeps_ends_at_the_smallest_network():
    tries = searched(lambda _: 95.0, least=0.03, n_runs=20)

    assert tries[-1].keep == pytest.approx(0.03, rel=0.02)


def test_a_quality_that_nothing_keeps_goes_up_to_the_dense_network():
    tries = searched(lambda _: 80.0, n_runs=30)

    assert [tried.keep for tried in tries] == sorted(tried.keep for tried in tries)
    assert tries[-1].keep > 1 / NARROW**1.5


def test_scores_that_noise_cannot_tell_apart_end_the_search():
    fine = searched(falling(0.9, 2.0), n_runs=30)
    coarse = searched(falling(0.9, 2.0), n_runs=30, error=2.0)

    assert len(coarse) < len(fine)


def test_lower_may_be_better():
    loss = Quality("loss", False, 0.3)
    tries = searched(lambda keep: 0.2 + 0.1 * math.log2(keep) ** 2, quality=loss, dense=0.2, n_runs=9)
    best = cheapest_kept(loss, tries)

    assert best is not None
    assert 0.5 <= best.keep < 0.55


def test_scores_that_are_no_numbers_are_not_kept_and_do_not_stop_the_search():
    tries = searched(lambda keep: math.nan if keep < 0.7 else 91.5, n_runs=8)

    assert 0.7 <= cheapest_kept(ACCURACY, tries).keep < 0.75


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_neighbours_that_fall_are_averaged(values):
    made = rising(values)

    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(made))
    assert sum(made) == pytest.approx(sum(values), abs=1e-9)
    assert rising(made) == pytest.approx(made)
