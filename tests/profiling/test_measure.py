"""What is made of times: a machine on which they vary is warned of, one that drifts is set right."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from profile_example import branching_net

import l0prune
from l0prune.errors import L0PruneWarning
from l0prune.latency.profile import NOISY, network_fingerprint
from l0prune.measuring.hardware import Environment, processor
from l0prune.model_call import ModelCall
from l0prune.profiling import runner
from l0prune.profiling.cuts import random_cuts
from l0prune.profiling.measure import ProfileOptions, Workload, _share_done, profile_of, sample_from, without_drift
from l0prune.profiling.outline import Moment


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A workload, and 32 moments of it, four of them of the whole network."""
    model, x = branching_net()
    flow, options, folder = l0prune.trace(model, x), ProfileOptions(seconds=0.1), tmp_path_factory.mktemp("graphs")
    work = Workload.of(model, flow, ModelCall.of(x, model), options)
    work.graph.write_weights(folder)
    feeds, moments = runner.feeds_of(work.inputs), []
    for is_open in itertools.islice(random_cuts(flow, block=4, multiple=4), 32):
        work.graph.write(is_open, folder / "cut.onnx")
        sample = sample_from(runner.measure(folder / "cut.onnx", feeds, 1, 0.001), "profiler")
        moments.append(Moment(work.graph.sizes(is_open), bool(is_open.all()), sample))
    return work, moments


def taking(moment, us):
    """The same kernels, at a speed at which the whole run takes this long."""
    factor = us / moment.sample.total_us
    nodes = {name: time * factor for name, time in moment.sample.nodes.items()}
    return replace(moment, sample=replace(moment.sample, total_us=us, nodes=nodes))


def profile_at(measured, dense_us):
    """The profile where the whole network takes these times in turn."""
    work, moments = measured
    times = itertools.cycle(dense_us)
    moments = [taking(moment, next(times)) if moment.is_whole else moment for moment in moments]
    return profile_of(
        work.graph.outline,
        moments,
        {},
        fingerprint=network_fingerprint(work.flow),
        inputs=work.inputs,
        name="net",
        processor_key=processor().key,
        environment=Environment.here(threads=1, batch_size=1),
        block=4,
        seconds=1.0,
    )


def test_a_machine_whose_interval_is_wider_than_five_per_cent_is_warned_of(measured):
    with pytest.warns(
        L0PruneWarning,
        match=r"noisy when net was profiled: .* between 0\.1 and 0\.12, .* profile again",
    ):
        profile = profile_at(measured, (100.0, 120.0, 100.0, 120.0))

    assert profile.noise == pytest.approx(0.2 / 1.1, rel=1e-6)


def test_a_machine_that_is_steady_is_not_warned_of(measured):
    with warnings.catch_warnings():
        warnings.simplefilter("error", L0PruneWarning)
        profile = profile_at(measured, (100.0, 101.0, 102.0, 103.0))

    assert 0 < profile.noise < NOISY


def test_a_machine_that_gets_slower_is_taken_as_if_it_had_kept_its_speed(measured):
    _, moments = measured
    drifting = [taking(moment, 100.0 * (1 + at / len(moments))) for at, moment in enumerate(moments)]

    steady = np.array([moment.sample.total_us for moment in without_drift(drifting)])

    assert np.ptp(steady) / steady.mean() < 0.15
    assert np.ptp([moment.sample.total_us for moment in drifting]) / steady.mean() > 0.5


def test_a_busy_machine_is_given_up_to_twice_the_time():
    one, two = ProfileOptions(seconds=10.0), ProfileOptions(seconds=10.0, threads=2)

    assert _share_done(10.0, 10.0, one) == 1
    assert _share_done(10.0, 4.0, one) == 0.5
    assert _share_done(20.0, 4.0, one) == 1
    assert _share_done(10.0, 18.0, two) == 1
