"""What a figure was measured on: processor, instruction set, cores, software versions."""

import platform
from dataclasses import dataclass
from pathlib import Path

from l0prune.machine import usable_cores

__all__ = ["Environment", "Processor", "processor", "processor_flags"]

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTION_SETS = ("avx512f", "avx2", "avx", "asimd", "neon")  # widest first, as the kernel spells them


@dataclass(frozen=True)
class Processor:
    """One kind of processor, precisely enough to tell two kernels' behaviours apart."""

    name: str
    instruction_set: str
    n_cores: int

    @property
    def key(self) -> str:
        """One line that is equal for equal processors, for caches."""
        return f"{self.name}, {self.instruction_set}, {platform.machine()}"


@dataclass(frozen=True)
class Environment:
    """Machine and software a benchmark ran on."""

    cpu: str
    instruction_set: str
    n_cores: int
    threads: int
    batch_size: int
    onnxruntime: str
    python: str
    os: str

    @classmethod
    def here(cls, *, threads: int, batch_size: int) -> "Environment":
        """This machine, with the run's own thread count and batch size."""
        import onnxruntime

        cpu = processor()
        return cls(
            cpu=cpu.name,
            instruction_set=cpu.instruction_set,
            n_cores=cpu.n_cores,
            threads=threads,
            batch_size=batch_size,
            onnxruntime=onnxruntime.__version__,
            python=platform.python_version(),
            os=platform.platform(terse=True),
        )


def processor() -> Processor:
    """The processor of this machine; cores are those this process may use."""
    facts = _cpuinfo()
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    if "cpu family" in facts and "model" in facts:  # virtual machines shorten the name: 'AMD EPYC'
        name = f"{name} (family {facts['cpu family']}, model {facts['model']})"
    flags = processor_flags()
    instruction_set = next((known for known in _INSTRUCTION_SETS if known in flags), "unknown")
    return Processor(name=name, instruction_set=instruction_set, n_cores=usable_cores())


def processor_flags() -> frozenset[str]:
    """What its instructions can do, as the kernel spells it; empty where the system does not say."""
    facts = _cpuinfo()
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty where there is none."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    first = text.split("\n\n", maxsplit=1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
