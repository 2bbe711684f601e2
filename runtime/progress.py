"""One progress bar on stderr with rate and time left, and one line a stage that says what it took."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str, int, int], None]
Finish = Callable[[str], None]


@contextmanager
def stage(name: str) -> Iterator[tuple[Tell, Finish]]:
    """Yield (tell, finish): `tell(part, done, total)` moves the bar, `finish(words)` adds to the closing line.

    What follows a comma in `part` is shown and may change: "annotate, 0.12 USD" moves the bar of "annotate".
    Without a terminal there is no bar, only the closing line; nothing is printed to stdout.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start, words = time.perf_counter(), [""]
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, tuple[object, float]] = {}

        def tell(part: str, done: int, total: int) -> None:
            name = part.partition(",")[0]
            if name not in tasks:
                tasks[name] = (bars.add_task(part, total=total, rate=""), time.perf_counter())
            task, since = tasks[name]
            rate = done / max(time.perf_counter() - since, 1e-9)
            bars.update(task, description=part, completed=done, total=total, rate=f"{rate:,.0f}/s" if rate >= 1 else "")  # type: ignore[arg-type]

        yield tell, lambda text: words.__setitem__(0, text)
    took = f"{time.perf_counter() - start:.1f} s"
    print(f"{name:<9} {took:>8}  {words[0]}".rstrip(), file=sys.stderr, flush=True)
