"""All gauges at once, sampled beside the work that is measured. Judges nothing."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

from edgestill.benchmarks.gauges.energy import find_meter
from edgestill.benchmarks.gauges.noise import NoiseWatch
from edgestill.benchmarks.gauges.thermal import ThermalWatch
from edgestill.benchmarks.measurement import Energy
from edgestill.runtime.device import governor

SYSTEM = Path("/")
SAMPLE_S = 1.0
IDLE_S = 5.0


class Watch:
    """Samples in a thread of its own, at the start, every second and at the end of its block."""

    def __init__(self, root: Path = SYSTEM) -> None:
        self._root = root
        self._thermal = ThermalWatch(root)
        self._noise = NoiseWatch(root)
        self._meter = find_meter(root)
        self._governors: set[str | None] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_sampling, daemon=True)
        self._times: list[float] = []

    def __enter__(self) -> "Watch":
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    def readings(self, idle: float | None, requests: int) -> dict[str, Any]:
        """Energy, thermal and noise as JSON objects, and whether the governor was changed meanwhile.

        Args:
            idle: watts of the machine before the work, None where no source tells them.
            requests: how many were answered within the block.
        """
        return {
            "energy": dataclasses.asdict(self._energy(idle, requests)),
            "thermal": dataclasses.asdict(self._thermal.reading()),
            "noise": dataclasses.asdict(self._noise.reading()),
            "governor_changed": len(self._governors) > 1,
        }

    def _energy(self, idle: float | None, requests: int) -> Energy:
        if self._meter is None or self._meter.joules is None:
            return Energy(None, None, None, None, None)
        gross_j, seconds = self._meter.joules, self._times[-1] - self._times[0]
        net_j = None if idle is None else gross_j - idle * seconds
        per_request = net_j / requests if net_j is not None and requests else None
        return Energy(self._meter.source, idle, gross_j, net_j, per_request)

    def _keep_sampling(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        self._thermal.sample()
        self._noise.sample()
        self._governors.add(governor(self._root))
        self._times.append(time.perf_counter())
        if self._meter is not None:
            self._meter.sample(self._times[-1])


def idle_w(root: Path = SYSTEM, seconds: float = IDLE_S) -> float | None:
    """Watts while this process sleeps; None where no source of energy tells them, at once where there is none."""
    meter = find_meter(root)
    if meter is None:
        return None
    start = time.perf_counter()
    meter.sample(start)
    for _ in range(10):
        time.sleep(seconds / 10)
        end = time.perf_counter()
        meter.sample(end)
    return None if meter.joules is None else meter.joules / (end - start)
