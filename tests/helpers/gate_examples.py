"""The gate distributions that the laws in the tests run over."""

from l0prune.gates.binary import StraightThroughGate
from l0prune.gates.families.concrete import BinaryConcrete
from l0prune.gates.families.continuous_sparsification import ContinuousSparsification
from l0prune.gates.families.exact_k import ExactK
from l0prune.gates.families.hard_concrete import HardConcrete
from l0prune.gates.families.mdr_exponential import MdrExponential
from l0prune.gates.families.mdr_exponential_uniform import MdrExponentialUniform
from l0prune.gates.families.mdr_power import MdrPower
from l0prune.gates.stretched import StretchedGate

CLIPPED = {
    "hard-concrete": HardConcrete(),
    "hard-concrete-colder": HardConcrete(temperature=1 / 3),
    "hard-concrete-warmer": HardConcrete(temperature=1.5),
    "hard-concrete-lopsided": HardConcrete(temperature=0.5, stretch=(-0.2, 1.05)),
    "stretched-exponential": StretchedGate(MdrExponential(8.0)),
    "stretched-exponential-uniform": StretchedGate(MdrExponentialUniform(9.0)),
    "stretched-power": StretchedGate(MdrPower(10.0)),
    "stretched-concrete": StretchedGate(BinaryConcrete(2 / 3)),
    "stretched-lopsided": StretchedGate(MdrExponential(5.0), stretch=(-0.3, 1.05)),
}
ATOMLESS = {
    "concrete": BinaryConcrete(),
    "concrete-cold": BinaryConcrete(temperature=1 / 8),
    "concrete-warm": BinaryConcrete(temperature=1.5),
    "exponential": MdrExponential(8.0),
    "exponential-cold": MdrExponential(15.0),
    "exponential-warm": MdrExponential(1.0),
    "exponential-uniform": MdrExponentialUniform(9.0),
    "exponential-uniform-cold": MdrExponentialUniform(16.0),
    "exponential-uniform-high": MdrExponentialUniform(12.0, floor=0.4),
    "power": MdrPower(10.0),
    "power-cold": MdrPower(40.0),
    "power-warm": MdrPower(2.0),
}
MIXTURES = {name: gate for name, gate in ATOMLESS.items() if not name.startswith("concrete")}
CONTINUOUS = {**CLIPPED, **ATOMLESS}
BINARY = {
    "hard-concrete-st": StraightThroughGate(HardConcrete()),
    "concrete-st": StraightThroughGate(BinaryConcrete()),
    "power-st": StraightThroughGate(MdrPower(10.0)),
    "stretched-st": StraightThroughGate(StretchedGate(MdrExponential(8.0))),
    "exact-k": ExactK(k=4),
}
EVERY = {**CONTINUOUS, **BINARY, "annealed": ContinuousSparsification()}
