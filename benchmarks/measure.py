"""Measure one artifact on a machine, stage by stage, each in a fresh process there. Compares nothing.

The stages themselves are `stage`; which machine runs them, `devices`; whether to believe the clock, `validity`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgestill.benchmarks.devices.local import LocalMachine
from edgestill.benchmarks.devices.machine import DeviceMachine, DoesNotFit
from edgestill.benchmarks.measurement import (
    INVALID,
    VALID,
    Decoding,
    Energy,
    GoldenCheck,
    Loads,
    Machine,
    Measurement,
    Memory,
    Noise,
    Request,
    Thermal,
)
from edgestill.benchmarks.samples import part_of, read_measurement, write_measurement
from edgestill.benchmarks.stage import events
from edgestill.benchmarks.validity import drift_of, reasons_against
from edgestill.runtime import manifest
from edgestill.runtime.bundle import MANIFEST_NAME, Artifact
from edgestill.runtime.device import Device, describe_device
from edgestill.runtime.errors import EdgestillError

# Processes that load the artifact cold, and as many that find it just read.
LOADS = 3

Progress = Callable[[str, int, int], None]
Facts = Generator[dict[str, Any], None, None]


@dataclass(frozen=True)
class Placed:
    """A bundle on a machine: its path as the machine's stages see it, and what a measurement of it depends on."""

    machine: DeviceMachine
    path: str
    inputs_sha256: str


def describe(machine: DeviceMachine) -> Device:
    """What the machine says of itself; of an emulated one without the host's memory and governor.

    Raises:
        EdgestillError: nothing runs there.
    """
    [found] = list(_facts(machine, ["probe"]))
    device = Device(**{**found["device"], "isa": tuple(found["device"]["isa"])})
    return dataclasses.replace(device, ram_bytes=None, governor=None) if machine.facts.emulated else device


def inputs_sha256(bundle: Path, device: Device | None = None, machine: Machine = LocalMachine.facts) -> str:
    """What a measurement depends on: the bundle, the device with its versions, and how much of it may be used."""
    facts = [dataclasses.asdict(device or describe_device()), dataclasses.asdict(machine)]
    return manifest.sha256_json([manifest.sha256_file(bundle / MANIFEST_NAME), *facts])


def joint_sha256(inputs: Sequence[str]) -> str:
    """What a report depends on: the inputs of its bundles, in their order; those of a single one stand for it."""
    return inputs[0] if len(inputs) == 1 else manifest.sha256_json(list(inputs))


def measure_artifact(
    placed: Placed, student: str, artifact: Artifact, out: Path, progress: Progress, called: str | None = None
) -> Measurement:
    """Measure an artifact of the bundle of `student`, or reuse `out` if it was made from the same inputs.

    Progress and errors name it as `called`, or as its engine.

    Raises:
        EdgestillError: a process failed; its last line is in the message.
        DoesNotFit: the machine's memory is too small for it.
    """
    if out.exists():
        kept = read_measurement(out)
        if kept.inputs_sha256 == placed.inputs_sha256:
            return kept
    called = called or artifact.engine
    try:
        measurement = _measure(placed, student, artifact, progress, called)
    except DoesNotFit as error:
        raise DoesNotFit(f"{called} {error.message}", error.hint) from None
    except EdgestillError as error:
        raise EdgestillError(f"measuring {called}: {error.message}", error.hint) from None
    write_measurement(out, measurement)
    return measurement


def _measure(placed: Placed, student: str, artifact: Artifact, progress: Progress, called: str) -> Measurement:
    machine, engine = placed.machine, artifact.engine

    def ask(stage: str, *options: str) -> Facts:
        return _facts(machine, [stage, placed.path, engine, *options])

    emulated = machine.facts.emulated
    loads = _no_loads() if emulated else _loads(ask, lambda done: progress(f"load {called}", done, 2 * LOADS))
    requests, result = _task(ask("task", *(["--rounds", "1"] if emulated else [])), progress, called)
    decoding, rows_per_s = Decoding(None, (), (), None, None), None
    if not emulated:
        with contextlib.suppress(DoesNotFit):  # it answers one row at a time, and that is what it is for
            decoding = _decoding(ask("decoding"), progress, called)
        with contextlib.suppress(DoesNotFit):
            rows_per_s = _last(ask("offline"))["rows_per_s"]
    golden = part_of(GoldenCheck, _last(ask("selfcheck")))
    threads, governor_changed = result.pop("threads"), result.pop("governor_changed")
    gauges = _gauges(result, requests) if not emulated else _no_gauges()
    if emulated:
        requests = [dataclasses.replace(request, latency_ms=None) for request in requests]
        reasons: tuple[str, ...] = ()
    else:
        reasons = reasons_against(requests, gauges["thermal"], gauges["noise"], governor_changed)
    return Measurement(
        inputs_sha256=placed.inputs_sha256,
        engine=engine,
        path=artifact.path,
        quantization=artifact.quantization,
        bytes=artifact.bytes,
        threads=threads,
        machine=machine.facts,
        loads=loads,
        decoding=decoding,
        offline_rows_per_s=rows_per_s,
        golden=golden,
        validity=INVALID if reasons else VALID,
        reasons=reasons,
        requests=tuple(requests),
        student=student,
        **gauges,
    )


def _loads(ask: Callable[..., Facts], tell: Callable[[int], None]) -> Loads:
    """Cold and warm in turn, so that each warm process finds what the cold one before it has read."""
    cold, warm = [], []
    for number in range(LOADS):
        cold.append(_last(ask("load", "--cold")))
        tell(2 * number + 1)
        warm.append(_last(ask("load")))
        tell(2 * number + 2)
    really_cold = [found for found in cold if found["cold_method"] is not None]
    return Loads(
        import_s=warm[0]["import_s"],
        cold_s=tuple(found["load_s"] for found in really_cold),
        cold_method=really_cold[0]["cold_method"] if really_cold else None,
        warm_s=tuple(found["load_s"] for found in warm),
        first_request_ms=warm[0]["first_request_ms"],
        cold_first_request_ms=tuple(found["first_request_ms"] for found in really_cold),
    )


def _task(facts: Facts, progress: Progress, called: str) -> tuple[list[Request], dict[str, Any]]:
    """(every request, what the gauges said)."""
    requests: list[Request] = []
    planned, result = 0, None
    with contextlib.closing(facts):
        for fact in facts:
            kind = fact.pop("kind")
            if kind == "planned":
                planned = fact["requests"]
            elif kind == "request":
                requests.append(Request(**fact))
                progress(f"bench {called}", len(requests), planned)
            else:
                result = fact
    assert result is not None  # _facts raises without one
    return requests, result


def _decoding(facts: Facts, progress: Progress, called: str) -> Decoding:
    result: dict[str, Any] = {}
    with contextlib.closing(facts):
        for fact in facts:
            if fact.pop("kind") == "progress":
                progress(f"decode {called}", fact["done"], fact["planned"])
            else:
                result = fact
    return part_of(Decoding, result)


def _gauges(result: dict[str, Any], requests: Sequence[Request]) -> dict[str, Any]:
    thermal = dataclasses.replace(part_of(Thermal, result["thermal"]), drift=drift_of(requests))
    kinds = {"memory": Memory, "energy": Energy, "noise": Noise}
    return {"thermal": thermal, **{name: part_of(kind, result[name]) for name, kind in kinds.items()}}


def _no_gauges() -> dict[str, Any]:
    """Of an emulated machine: what a gauge says there is the host's."""
    kinds = {"memory": Memory, "energy": Energy, "thermal": Thermal, "noise": Noise}
    return {name: kind(*(None for _ in dataclasses.fields(kind))) for name, kind in kinds.items()}


def _no_loads() -> Loads:
    return Loads(None, (), None, (), None)


def _last(facts: Facts) -> dict[str, Any]:
    *_, result = facts
    del result["kind"]
    return result


def _facts(machine: DeviceMachine, arguments: Sequence[str]) -> Facts:
    """What the stage says, its result last.

    Raises:
        EdgestillError: the stage failed or ended without a result.
    """
    kind = None
    with machine.stage(arguments) as lines:
        for fact in events(lines):
            kind = fact["kind"]
            yield fact
    if kind != "result":
        raise EdgestillError(f"the stage {arguments[0]} ended without a result", "run the same command again")
