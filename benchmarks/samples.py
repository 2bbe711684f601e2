"""Measurements as JSON lines: one line for a run, then one for each of its requests. Computes nothing."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgestill.benchmarks.measurement import (
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
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

PARTS: dict[str, Any] = {
    "machine": Machine,
    "loads": Loads,
    "decoding": Decoding,
    "memory": Memory,
    "energy": Energy,
    "thermal": Thermal,
    "noise": Noise,
    "golden": GoldenCheck,
}


def measurement_lines(measurement: Measurement) -> list[dict[str, Any]]:
    """The lines of one measurement."""
    head = {"kind": "run", **dataclasses.asdict(measurement)}
    requests = head.pop("requests")
    return [head, *({"kind": "request", **row} for row in requests)]


def write_measurement(path: Path, measurement: Measurement) -> None:
    """Write one measurement, atomically."""
    manifest.write_jsonl(path, measurement_lines(measurement))


def read_measurement(path: Path) -> Measurement:
    """What `write_measurement` wrote.

    Raises:
        EdgestillError: the file is missing or holds something else.
    """
    found = list(read_samples(path))
    if len(found) != 1:
        raise EdgestillError(f"{path} holds no measurement: {len(found)} runs", "delete it and run the same command")
    return found[0]


def read_samples(path: Path) -> Iterator[Measurement]:
    """All measurements of a file, in their order.

    Raises:
        EdgestillError: the file is missing or holds something else.
    """
    head: dict[str, Any] = {}
    requests: list[Request] = []
    try:
        for line in manifest.read_jsonl(path):
            if line.pop("kind") == "request":
                requests.append(Request(**line))
                continue
            if head:
                yield _measurement(head, requests)
            head, requests = line, []
        if head:
            yield _measurement(head, requests)
    except (KeyError, TypeError) as error:
        raise EdgestillError(f"{path} holds no measurement: {error}", "delete it and run the same command") from None


def _measurement(head: dict[str, Any], requests: Sequence[Request]) -> Measurement:
    parts = {key: part_of(PARTS[key], value) if key in PARTS else value for key, value in head.items()}
    return Measurement(**{**parts, "reasons": tuple(head["reasons"])}, requests=tuple(requests))


def part_of(kind: Any, value: dict[str, Any]) -> Any:
    """A flat dataclass from a JSON object, whose lists are tuples."""
    return kind(**{key: tuple(item) if isinstance(item, list) else item for key, item in value.items()})
