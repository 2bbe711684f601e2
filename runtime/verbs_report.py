"""Reports of several devices side by side, and an old one against a new one. Parses and prints; decides nothing."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from edgestill.runtime.errors import GateFailed
from edgestill.runtime.terminal import Json, answer

Reports = Annotated[
    list[Path], typer.Argument(metavar="REPORT...", help="report.json files or their folders, of the same test rows.")
]
JoinedOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for the joint report.")]
Old = Annotated[Path, typer.Argument(metavar="OLD", help="report.json or its folder.")]
New = Annotated[Path, typer.Argument(metavar="NEW", help="report.json or its folder.")]


def report(reports: Reports, out: JoinedOut = Path("report-joined"), as_json: Json = False) -> None:
    """Join reports of several devices or students. One page, on the same rows; needs no bundle."""
    from edgestill.benchmarks.joined import join_reports
    from edgestill.benchmarks.render import terminal_table

    found = join_reports(reports, out)
    answer(as_json, dataclasses.asdict(found), terminal_table(found), f"open {out / 'report.html'}")


def compare(old: Old, new: New, as_json: Json = False) -> None:
    """Say what became faster, slower, better or worse. Exit code 2 when something became slower or worse."""
    from edgestill.benchmarks.compare import change_lines, compare_reports

    found = compare_reports(old, new)
    following = f"edgestill compare {old} {new} --json"
    answer(as_json, dataclasses.asdict(found), "\n".join(change_lines(found)), following)
    if found.regressions:
        raise GateFailed("; ".join(found.regressions), f"bench again with another --out to be sure, or keep {old}")


REPORT_VERBS = (report, compare)
