"""What was measured of students as tables and pictures for docs/students.md. Measures nothing.

The lines of bench_students.py, and the report of the example's students.yaml.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_students import version

from edgestill.benchmarks import plot
from edgestill.benchmarks.experiments import pictures
from edgestill.benchmarks.page import charts
from edgestill.benchmarks.report import Report
from edgestill.runtime import manifest, metrics

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- measured: {} -->", "<!-- end of measured -->"
SHAPES = {
    "floor": ("", "triangle"),
    "minilm": ("hue0", "circle"),
    "smollm2": ("hue1", "diamond"),
    "smollm2-12-layers": ("hue2", "square"),
}
DRAWS = 2000
APART = plot.WIDTH + 20  # from one panel of a picture to the next
Lines = Sequence[dict[str, Any]]


def write_tables(results: Path) -> None:
    """Put each set's table between its marks in docs/students.md, and its plot beside it."""
    for path in sorted(results.glob("*.jsonl")):
        lines = [line for line in manifest.read_jsonl(path) if line.get("training_version") == version(line["student"])]
        put_measured("students.md", path.stem, table(path.stem, lines))
        manifest.write_text_atomic(DOCS / f"students-{path.stem}.svg", picture(lines))
    report = manifest.load(Report, results / "example" / "report.json")
    manifest.write_text_atomic(DOCS / "students-example.svg", panels(report))


def put_measured(page_name: str, name: str, text: str) -> None:
    """Put what was measured between its marks on a page of docs/, at the page's end if it has none yet."""
    page, begin = (DOCS / page_name).read_text(encoding="utf-8"), BEGIN.format(name)
    if begin not in page:
        page += f"\n{begin}\n{END}\n"
    before, _, rest = page.partition(begin)
    manifest.write_text_atomic(DOCS / page_name, f"{before}{begin}\n{text}\n{END}{rest.partition(END)[2]}")


def groups(lines: Lines) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Lines by (student, rows drawn), smallest draw first."""
    found = defaultdict(list)
    for line in sorted(lines, key=lambda one: (one["train_rows"] + one["dev_rows"], one["student"], one["seed"])):
        found[line["student"], line["train_rows"] + line["dev_rows"]].append(line)
    return dict(found)


def table(name: str, lines: Lines) -> str:
    """One row a student and number of rows: mean accuracy over the seeds, difference to the floor, time, memory."""
    found = groups(lines)
    head = (
        f"| {name}: rows | student | accuracy %, each seed | mean | minus floor, points | training s | peak MB |\n"
        "|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *(_row(student, rows, cells, found) for (student, rows), cells in found.items())])


def _row(student: str, rows: int, cells: Lines, found: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    each = ", ".join(f"{100 * cell['accuracy']:.1f}" for cell in cells)
    mean = sum(cell["accuracy"] for cell in cells) / len(cells)
    times = [cell.get("train_s", cell["wall_s"]) for cell in cells]
    versus = "" if student == "floor" else _versus(cells, found.get(("floor", rows), []))
    peak = max(cell["peak_rss_bytes"] for cell in cells) / 1e6
    seconds = sorted(times)[len(times) // 2]
    return f"| {rows:,} | {student} | {each} | {100 * mean:.1f} | {versus} | {seconds:,.0f} | {peak:,.0f} |"


def _versus(cells: Lines, floors: Lines) -> str:
    """Mean difference over the seeds that both have, with a bootstrap interval (95 %) over the test rows."""
    by_seed = {floor["seed"]: floor for floor in floors}
    pairs = [(cell, by_seed[cell["seed"]]) for cell in cells if cell["seed"] in by_seed]
    if not pairs:
        return "-"
    # seeds share their test rows: what is drawn again is a row with its mean over the seeds
    gains = np.mean([np.subtract(rights(cell), rights(floor), dtype=float) for cell, floor in pairs], axis=0)
    drawn = np.random.default_rng(0).choice(gains, (DRAWS, len(gains))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{100 * gains.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def rights(line: dict[str, Any]) -> list[bool]:
    """Which test rows were right, in the order of the file."""
    return [bit == "1" for bit in f"{int(line['right'], 16):0{line['test_rows']}b}"]


def picture(lines: Lines) -> str:
    """Accuracy against rows, one mark a student and number of rows; bars span the seeds."""
    svg = plot.scatter(list(_points(lines)), None, "labelled rows (log)", "accuracy %", lambda rows: f"{rows:,.0f}")
    return pictures.standalone(svg)


def panels(report: Report) -> str:
    """A report's plots against size and against latency, side by side as one picture."""
    plots = [svg for _, svg in charts.charts(report)[:2]]
    height = max(int(svg.split('"')[1].split()[3]) for svg in plots)  # viewBox="0 0 WIDTH HEIGHT"
    inner = [
        svg.replace("<svg ", f'<svg x="{number * APART}" width="{plot.WIDTH}" height="{height}" ', 1)
        for number, svg in enumerate(plots)
    ]
    width = APART + plot.WIDTH
    label = "accuracy against size and against latency"
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">\n{"".join(inner)}\n</svg>'
    return pictures.standalone(svg)


def _points(lines: Lines) -> Iterator[plot.Point]:
    for (student, rows), cells in groups(lines).items():
        shares = [cell["accuracy"] for cell in cells]
        style, shape = SHAPES[student]
        mean = metrics.Estimate(sum(shares) / len(shares), min(shares), max(shares))
        yield plot.Point(student, style, float(rows), mean, shape)


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parent / "benchmarks" / "results" / "students")
    print(json.dumps({"written": str(DOCS / "students.md")}))
