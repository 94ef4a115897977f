"""The same layers take less time in a small network: what they add up to is corrected by what whole networks took."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from profile_example import branching_net, hand_made_profile

import l0prune
from l0prune.cost.kinds import Costs
from l0prune.errors import FileFormatError
from l0prune.latency.profile import Profile
from l0prune.latency.whole import WholeNetwork
from l0prune.profiling.whole import whole_curve

CURVE = ((100.0, 80.0), (600.0, 540.0), (2000.0, 2000.0))


@pytest.fixture(scope="module")
def flow():
    model, x = branching_net()
    return l0prune.trace(model, x)


def opened(flow, share):
    is_open = np.zeros(flow.n_gates, bool)
    for name in ("first.weight", "second.weight"):
        gates = flow.tensors[name][0]
        is_open[gates[: int(share * len(gates))]] = True
    return is_open


def test_sums_are_corrected_between_points_and_in_proportion_beyond():
    whole = WholeNetwork(CURVE)

    np.testing.assert_allclose(
        whole([0.0, 50.0, 100.0, 350.0, 600.0, 4000.0, 9000.0]), [0, 40, 80, 310, 540, 4000, 9000]
    )
    np.testing.assert_allclose(WholeNetwork(())([3.0, 1e5]), [3.0, 1e5])


def test_the_hard_latency_is_that_of_the_curve_and_its_layers_keep_their_proportions(flow):
    plain, profile = hand_made_profile(flow), replace(hand_made_profile(flow), whole=CURVE)
    before, after = Costs(flow)("latency", plain), Costs(flow)("latency", profile)

    for share in (0.25, 0.5, 1.0):
        summed = before.hard(opened(flow, share)) * before.dense * 1000
        total = after.hard(opened(flow, share)) * after.dense * 1000
        assert total == pytest.approx(float(WholeNetwork(CURVE)(summed)), rel=1e-12)
        one, other = (c.hard_layers(opened(flow, share)) for c in (before, after))
        np.testing.assert_allclose(one / one.sum(), other / other.sum(), rtol=1e-12)
        assert total < 0.97 * summed or share == 1.0


def test_the_expected_latency_follows_the_curve_with_its_gradient(flow):
    cost = Costs(flow)("latency", replace(hand_made_profile(flow), whole=CURVE))
    plain = Costs(flow)("latency", hand_made_profile(flow))
    generator = torch.Generator().manual_seed(0)
    p = (0.2 + 0.6 * torch.rand(cost.n_gates, dtype=torch.float64, generator=generator)).requires_grad_()

    found = cost.expected(p)
    found.backward()

    summed = float(plain.expected(p)) * plain.dense * 1000
    assert float(found) * cost.dense * 1000 == pytest.approx(float(WholeNetwork(CURVE)(summed)), rel=1e-9)
    assert float(cost.expected(torch.ones_like(p))) == pytest.approx(1)
    for gate in (0, 9, 30):
        step = torch.zeros_like(p.detach())
        step[gate] = 1e-6
        with torch.no_grad():
            slope = (cost.expected(p + step) - cost.expected(p - step)) / 2e-6
        assert float(p.grad[gate]) == pytest.approx(float(slope), rel=1e-4)


def test_the_curve_is_found_in_noisy_times():
    """Layers of up to a thousand microseconds fit the cache, and take four fifths of the time; 3 % noise, a tenth far off."""
    rng = np.random.default_rng(0)
    sums = np.exp(rng.uniform(np.log(200), np.log(9000), 150))
    share = np.interp(sums, [1000, 4000], [0.8, 1.0])
    measured = sums * share * np.exp(rng.normal(0, 0.03, 150)) * np.where(rng.random(150) < 0.1, 1.5, 1.0)

    curve = whole_curve(sums, measured)

    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(curve))
    wanted = np.array([300.0, 800.0, 4500.0, 8000.0])
    np.testing.assert_allclose(
        WholeNetwork(curve)(wanted), wanted * np.interp(wanted, [1000, 4000], [0.8, 1.0]), rtol=0.05
    )


def test_networks_of_nearly_one_size_leave_fewer_points():
    """Two points at one sum would be no curve, and the profile would refuse it."""
    sums = 5000.0 + np.array([0.0, 0.01, 0.02])

    curve = whole_curve(sums, 0.9 * sums)

    assert all(a[0] < b[0] for a, b in itertools.pairwise(curve))
    np.testing.assert_allclose(WholeNetwork(curve)(sums), 0.9 * sums, rtol=1e-4)


def test_a_curve_that_falls_is_refused_and_files_without_one_are_read(flow, tmp_path):
    profile = replace(hand_made_profile(flow), whole=CURVE)
    assert Profile.load(profile.save(tmp_path / "profile.json")) == profile

    data = profile.to_json()
    with pytest.raises(FileFormatError, match="together"):
        Profile.from_json({**data, "whole": [[100.0, 80.0], [200.0, 70.0]]})
    del data["whole"]
    assert Profile.from_json(data).whole == ()
