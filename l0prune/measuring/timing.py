"""Timing several calls against each other so that noise hits all of them alike.

A block times every call back to back, in random order, each for a few runs in a row. Whatever disturbs the machine for
longer than a block (other processes, clock changes) then disturbs all calls of that block, and cancels in their ratios.

Work on one thread is timed by that thread's own processor time, which stands still while the operating system gives the
core to somebody else. On an idle machine it is the time on the wall; on a busy one, wall times bend even ratios, because
long runs are interrupted more often than short ones.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PairedTimes", "interleave", "median_ratio", "ratio_between_sessions"]

FloatArray = npt.NDArray[np.float64]

_BOOTSTRAP_SAMPLES = 2000
_MIN_BLOCKS = 3


@dataclass(frozen=True)
class PairedTimes:
    """Run times of several calls, in blocks that were measured together.

    Attributes:
        seconds: One array per call, shape `(n_blocks, runs_per_block)`, seconds per run.
        clock: "thread" (processor time of the calling thread) or "wall".
        busy: Share of the wall time in which the thread had no core, in [0, 1); 0 by the wall clock, which cannot tell.
    """

    seconds: tuple[FloatArray, ...]
    clock: str
    busy: float

    @property
    def block_medians(self) -> FloatArray:
        """Median run of each block, shape `(n_calls, n_blocks)`, seconds."""
        return np.stack([np.median(runs, axis=1) for runs in self.seconds])


def interleave(
    calls: Sequence[Callable[[], object]],
    *,
    one_thread: bool,
    warmup_s: float,
    min_samples: int,
    min_seconds: float,
    max_seconds: float,
    block_s: float,
    seed: int,
) -> PairedTimes:
    """Time all calls in interleaved blocks.

    Args:
        calls: What to time; each call is one run.
        one_thread: The calls work on the calling thread only and never wait: time them by its processor time.
        warmup_s: Seconds of runs of each call before any is timed; at least three runs.
        min_samples: Timed runs of each call, at least.
        min_seconds: Seconds of measuring in all, at least.
        max_seconds: After this many seconds the measuring ends, whatever is missing, with three blocks at least.
        block_s: Aim for this many seconds of each call within a block; at least one run.
        seed: Of the order within the blocks.

    Returns:
        Times of every run; all calls have the same number of blocks.
    """
    name, clock = (
        ("thread", time.thread_time) if one_thread and _thread_clock_is_fine() else ("wall", time.perf_counter)
    )
    runs_per_block = [max(1, round(block_s / _warm_up(call, warmup_s, clock))) for call in calls]
    needed_blocks = max(_MIN_BLOCKS, *(-(-min_samples // runs) for runs in runs_per_block))
    order = np.random.default_rng(seed)
    blocks: list[list[FloatArray]] = [[] for _ in calls]
    start, start_on_clock = time.perf_counter(), clock()
    while True:
        for index in order.permutation(len(calls)):
            blocks[index].append(_timed_runs(calls[index], runs_per_block[index], clock))
        elapsed, done = time.perf_counter() - start, len(blocks[0])
        enough = done >= needed_blocks and elapsed >= min_seconds
        if enough or (done >= _MIN_BLOCKS and elapsed >= max_seconds):
            busy = max(0.0, 1.0 - (clock() - start_on_clock) / elapsed)
            return PairedTimes(tuple(np.stack(runs) for runs in blocks), name, busy if name == "thread" else 0.0)


def median_ratio(first: FloatArray, second: FloatArray, *, seed: int) -> tuple[float, float, float]:
    """How many times longer `first` takes than `second`, with its 95 % interval.

    Args:
        first: Block medians, shape `(n_blocks,)`, seconds.
        second: Block medians of the same blocks.
        seed: Of the bootstrap.

    Returns:
        Median of the blocks' ratios, and the 2.5 % and 97.5 % quantiles of that median over 2000 bootstrap resamples of
        the blocks (percentile bootstrap: Efron and Tibshirani (1993), chapter 13).
    """
    ratios = first / second
    draws = np.random.default_rng(seed).integers(0, len(ratios), size=(_BOOTSTRAP_SAMPLES, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def ratio_between_sessions(first: Sequence[FloatArray], second: Sequence[FloatArray]) -> tuple[float, float, float]:
    """How many times longer `first` takes than `second`, with the interval that yet another process lies in.

    Args:
        first: Block medians in each of two or more processes, seconds.
        second: Of the same blocks.

    Returns:
        The geometric mean over the processes of the median of the blocks' ratios; and the bounds within which the ratio in
        one more process lies, 19 times of 20. What differs from process to process (where memory lies, how weights were
        packed, what the machine was doing) differs there too, so this is wider than an interval of the mean, and also holds
        the mean of a later benchmark, whose processes have something in common that those of this one did not have.
        Logarithms of ratios are taken for normal, with Student's quantile: resampling a handful of processes gives
        intervals that are too narrow.

    Source: Kalibera and Jones (2013), Rigorous benchmarking in reasonable time, on the levels of repetition; Hahn and Meeker
    (1991), section 4.7, on the prediction interval of a further observation.
    """
    from scipy.special import stdtrit

    logs = np.log([np.median(one / other) for one, other in zip(first, second, strict=True)])
    n = len(logs)
    reach = float(stdtrit(n - 1, 0.975)) * float(np.std(logs, ddof=1)) * np.sqrt(1 + 1 / n)
    low, middle, high = np.exp(logs.mean() + np.array([-reach, 0.0, reach]))
    return float(middle), float(low), float(high)


def _thread_clock_is_fine() -> bool:
    """Whether this system's clock of processor time resolves microseconds."""
    return time.get_clock_info("thread_time").resolution <= 1e-6


def _warm_up(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Run for a while; the fastest run in seconds."""
    start, fastest, runs = time.perf_counter(), float("inf"), 0
    while runs < 3 or time.perf_counter() - start < seconds:
        fastest = min(fastest, float(_timed_runs(call, 1, clock)[0]))
        runs += 1
    return max(fastest, 1e-9)


def _timed_runs(call: Callable[[], object], runs: int, clock: Callable[[], float]) -> FloatArray:
    """Seconds of each of several runs in a row; where they are short, one untimed run first refills the caches."""
    if runs >= 3:
        call()
    stamps = np.empty(runs + 1)
    stamps[0] = clock()
    for run in range(runs):
        call()
        stamps[run + 1] = clock()
    return np.diff(stamps)
