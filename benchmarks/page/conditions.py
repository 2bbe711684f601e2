"""Everything that a report's numbers hold for, as one table: machines, versions, rows, hashes. Computes nothing."""

from collections.abc import Iterator, Mapping

from edgestill.benchmarks.page.tables import Table, short
from edgestill.benchmarks.report import Report, Site


def conditions_table(report: Report) -> Table:
    """Name and value of each condition; what all machines, students or systems have alike is said once."""
    sites, conditions = report.machines, report.conditions
    psi = conditions.psi_cpu_some_avg10
    contended = {True: "contended", False: "not contended", None: "not known"}[conditions.contended]
    by_site = [dict(_site_rows(site)) for site in sites]
    names = list(dict.fromkeys(name for rows in by_site for name in rows))
    told = [
        (name, {s.machine.name: rows.get(name, "-") for s, rows in zip(sites, by_site, strict=True)}) for name in names
    ]
    rows = (
        ("report", report.created),
        *((name, alike(values)) for name, values in told),
        ("threads", alike({name: str(n) for name, n in conditions.threads.items()})),
        ("test rows", str(conditions.rows)),
        ("timed requests", _counts(conditions.requests)),
        ("rounds over the rows", _counts(conditions.rounds)),
        ("others waiting for the processor", contended if psi is None else f"{psi:g} % of the time ({contended})"),
        ("versions at build", alike({k: versions(v) for k, v in conditions.build_versions.items()})),
        ("bundle.json sha256", alike(report.bundle_sha256)),
        ("test rows sha256", report.dataset_sha256),
    )
    return Table(("condition", "value"), rows)


def _site_rows(site: Site) -> Iterator[tuple[str, str]]:
    device, machine = site.device, site.machine
    yield "date", site.created
    yield "machine", machine.name if machine.name == machine.transport else f"{machine.name}, {machine.transport}"
    if machine.emulated:
        yield "emulator", machine.emulator or "not known"
    if machine.profile is not None:
        yield "taken from it", machine.profile
    if machine.memory_limit_bytes is not None:
        yield "memory limit", f"{short(machine.memory_limit_bytes, 1e6)} MB"
    yield "processor", f"{device.cpu_model or 'not known'}, {device.cores_usable} usable cores, {device.machine}"
    yield "instruction sets", ", ".join(device.isa) or "none of those that matter"
    yield "memory", f"{short(device.ram_bytes, 1e9)} GB"
    yield "governor", device.governor or "not known"
    yield "system", f"{device.os}, Python {device.python}"
    yield "versions there", versions(device.packages)


def versions(packages: Mapping[str, str]) -> str:
    """Such as "numpy 2.1, onnxruntime 1.31"."""
    return ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))


def alike(values: Mapping[str, str]) -> str:
    """What all have alike is said once, else each with its name."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
