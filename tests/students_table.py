"""The lines of bench_students.py as a Markdown table and a plot for docs/students.md. Measures nothing."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.benchmarks import plot
from edgestill.runtime import manifest, metrics

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- measured: {} -->", "<!-- end of measured -->"
STYLE = """<style>svg{background:#fff}text{font:11px sans-serif;fill:#333;stroke:none!important}
.axis,.grid{stroke:#ccc}line,path{fill:none;stroke:#888}
.floor{fill:#888;stroke:#888}.minilm{fill:#1b6ca8;stroke:#1b6ca8}.smollm2{fill:#c0392b;stroke:#c0392b}
.cut{fill:#d68910;stroke:#d68910}</style>"""
SHAPES = {
    "floor": ("floor", "square"),
    "minilm": ("minilm", "circle"),
    "smollm2": ("smollm2", "diamond"),
    "smollm2-12-layers": ("cut", "triangle"),
}
DRAWS = 2000
Lines = Sequence[dict[str, Any]]


def write_tables(results: Path) -> None:
    """Put each set's table between its marks in docs/students.md, and its plot beside it."""
    for path in sorted(results.glob("*.jsonl")):
        lines = list(manifest.read_jsonl(path))
        put_measured("students.md", path.stem, table(path.stem, lines))
        manifest.write_text_atomic(DOCS / f"students-{path.stem}.svg", picture(lines))


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
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STYLE}", 1)


def _points(lines: Lines) -> Iterator[plot.Point]:
    for (student, rows), cells in groups(lines).items():
        shares = [cell["accuracy"] for cell in cells]
        style, shape = SHAPES[student]
        mean = metrics.Estimate(sum(shares) / len(shares), min(shares), max(shares))
        yield plot.Point(student, style, float(rows), mean, shape)


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parent / "benchmarks" / "results" / "students")
    print(json.dumps({"written": str(DOCS / "students.md")}))
