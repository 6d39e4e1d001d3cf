"""Joules, where the machine counts them: the processor package's counter (Linux's powercap) and NVIDIA's of a GPU.

Both count the whole chip, whatever runs on it: on a shared machine that is everybody's energy, and the ledger says so.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness.bench.rounds import Contestant

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"
TICKS = 20
"""Moves of a counter that a measurement lasts at least: then one too many or too few is a twentieth."""


@dataclass(frozen=True, eq=False)
class Meter:
    """Something that counts energy: `read()` says how many joules so far."""

    name: str
    read: Callable[[], float]

    def period(self, moves: int = 4, budget: float = 2.0) -> float | None:
        """Seconds from one move of the counter to the next, on average; None where it stays still for `budget` seconds."""
        until, last = time.perf_counter() + budget, self.read()
        times: list[float] = []
        while len(times) <= moves:
            if (now := time.perf_counter()) > until:
                return None
            if (value := self.read()) != last:
                last = value
                times.append(now)
        return (times[-1] - times[0]) / moves


def meters(device: str, powercap: Path = POWERCAP) -> list[Meter]:
    """Those that can be read here: of each processor package, and of the first GPU where that is the device."""
    found = [_package(path) for path in sorted(powercap.glob("intel-rapl:*")) if path.name.count(":") == 1]
    own = [meter for meter in found if meter is not None]
    gpu = _gpu() if device == "gpu" else None
    return [*own, gpu] if gpu else own


def metered(contestants: Sequence[Contestant], meters: Sequence[Meter]) -> str:
    """Count the energy of a step of each, in a block as long as the counters need. What is to be said of it, if anything.

    A counter moves at times of its own, NVIDIA's a few times a second: of a shorter block it says what ran before it.
    """
    periods = {meter: moves for meter in meters if (moves := meter.period()) is not None}
    if not periods:
        return ""
    lasts = TICKS * max(periods.values())
    for one in contestants:
        own, steps = replace(one, blocks=[]), 0
        own.fill(1.1 * lasts / float(np.median(one.seconds)))
        began, before = time.perf_counter(), {meter: meter.read() for meter in periods}
        while time.perf_counter() < began + lasts:
            own.run(own.steps)
            steps += own.steps
        one.joules = {meter.name: (meter.read() - was) / steps for meter, was in before.items()}
    told = ", ".join(f"{meter.name}'s every {1e3 * moves:.3g} ms" for meter, moves in periods.items())
    return f"Energy is of one block of at least {lasts:.2g} s of each, since its counters move at times of their own: {told}."


def _package(path: Path) -> Meter | None:
    """A package's counter, in microjoules; it starts anew at a limit. None where it may not be read, as often by anybody but root."""
    try:
        limit = int((path / "max_energy_range_uj").read_text())
        last = int((path / "energy_uj").read_text())
        name = (path / "name").read_text().strip()
    except (OSError, ValueError):
        return None
    total = 0

    def read() -> float:
        nonlocal last, total
        now = int((path / "energy_uj").read_text())
        total += (now - last) % (limit + 1)
        last = now
        return total / 1e6

    return Meter(name, read)


def driver() -> str | None:
    """The version of NVIDIA's driver; None where it is not told."""
    text = ctypes.create_string_buffer(96)
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return None
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        return None
    return text.value.decode()


def _gpu() -> Meter | None:
    """The first GPU's counter, in millijoules (NVML's nvmlDeviceGetTotalEnergyConsumption, since Volta)."""
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return None
    handle, used = ctypes.c_void_p(), ctypes.c_ulonglong()
    calls = (nvml.nvmlInit_v2(), nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)))
    if any(calls) or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)):
        return None

    def read() -> float:
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)):
            raise OSError("the GPU's energy counter cannot be read any more")
        return used.value / 1e3

    return Meter("gpu", read)
