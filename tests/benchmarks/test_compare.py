"""An old report against a new one: only what is beyond noise is called a change."""

import dataclasses
import json
import random
import re

import numpy as np
import pytest

from edgestill.benchmarks.compare import FASTER, SAME, SLOWER, change_lines, compare_reports, median_ratio
from edgestill.benchmarks.measurement import INVALID, Machine
from edgestill.runtime.errors import EdgestillError, GateFailed
from edgestill.runtime.verbs_report import compare as compare_verb

GOLD = ["yes", "no"] * 20
TIMES = [10.0 + i for i in range(40)]


def wrong_on(*rows):
    return [{"yes": "no", "no": "yes"}[label] if i in rows else label for i, label in enumerate(GOLD)]


def timed(factor, seed):
    """TIMES times `factor`, each a few percent off."""
    rng = random.Random(seed)
    return [ms * factor * rng.lognormvariate(0, 0.03) for ms in TIMES]


@pytest.fixture
def two(handmade, written):
    """Write old and new reports of one set of rows; (compared, the only change)."""

    def make(old=None, new=None, old_changes=None, new_changes=None, device=None):
        folders = [
            written(handmade(**(old or {})), "old", **(old_changes or {})),
            written(handmade(**(new or {})), "new", device, **(new_changes or {})),
        ]
        found = compare_reports(*folders)
        return found, found.changes[0]

    return make


@pytest.mark.parametrize(("factor", "outcome"), [(1.3, SLOWER), (1.0, SAME), (0.97, SAME), (1.03, SAME), (0.7, FASTER)])
def test_only_a_change_beyond_noise_is_faster_or_slower(two, factor, outcome):
    found, change = two({"latencies_ms": timed(1, 1)}, {"latencies_ms": timed(factor, 2)})
    assert change.clock.outcome == outcome
    assert change.clock.ratio.value == pytest.approx(factor, rel=0.03)
    assert change.clock.rows == 40
    assert len(found.regressions) == (outcome == SLOWER)
    assert outcome in " ".join(change_lines(found))


def test_rounds_of_one_run_that_are_far_apart_are_noise(handmade, written):
    made = handmade(latencies_ms=TIMES)
    first = made.measurement.requests
    again = tuple(dataclasses.replace(r, round=1, probabilities=None, latency_ms=r.latency_ms * 1.4) for r in first)
    slower = tuple(dataclasses.replace(r, latency_ms=r.latency_ms * 1.25) for r in (*first, *again))
    old = written(made, "old", requests=(*first, *again))
    (change,) = compare_reports(old, written(made, "new", requests=slower)).changes
    assert change.clock.noise == pytest.approx(0.4, abs=0.01)
    assert change.clock.outcome == SAME


def test_fewer_rows_right_beyond_chance_are_a_regression(two):
    found, change = two({"artifact": GOLD}, {"artifact": wrong_on(*range(12))})
    assert (change.quality.outcome, change.flips) == ("loses", 12)
    assert found.regressions == ("student ONNX q4_0 is worse: 30.0 points fewer rows right",)
    _, change = two({"artifact": wrong_on(*range(12))}, {"artifact": GOLD})
    assert change.quality.outcome == "wins"


def test_two_more_mistakes_are_no_regression(two):
    found, change = two({"artifact": GOLD}, {"artifact": wrong_on(3, 4)})
    assert change.quality.outcome == "no difference shown"
    assert found.regressions == ()
    assert "2 labels differ" in " ".join(change_lines(found))


def test_the_verb_prints_what_it_found_and_fails_the_gate_on_a_regression(handmade, written, capsys):
    good, bad = (
        written(handmade(artifact=labels), name) for labels, name in ((GOLD, "good"), (wrong_on(*range(12)), "bad"))
    )
    with pytest.raises(GateFailed, match=r"student ONNX q4_0 is worse: 30\.0 points"):
        compare_verb(good, bad, as_json=True)
    assert json.loads(capsys.readouterr().out)["schema"] == "edge-compare/1"
    compare_verb(bad, good)
    assert "quality: better, +30.0 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validity": INVALID, "reasons": ("throttled",)}, "the new run is INVALID: throttled"),
        ({"machine": Machine("a72", "emulated", True)}, "the new run was emulated"),
        ({"threads": 1}, "other threads: 2 then, 1 now"),
        ({"machine": Machine("local", "constrained", profile="1 core")}, "other machines: .*1 core now"),
    ],
)
def test_a_clock_that_says_nothing_is_not_judged_and_quality_is(two, changes, said):
    slow = [10 * ms for ms in TIMES]
    found, change = two({"latencies_ms": TIMES}, {"latencies_ms": slow, "artifact": GOLD}, new_changes=changes)
    assert change.clock is None
    assert found.regressions == ()
    assert change.quality.only_a == 4
    assert re.search(f"time: not judged, {said}", " ".join(change_lines(found)))


def test_another_processor_is_not_judged_by_the_clock(two):
    _, change = two(new={"latencies_ms": [99.0] * 40}, device={"cpu_model": "another"})
    assert change.clock is None
    assert "another" in change.not_timed


def test_few_timed_rows_are_not_judged(two):
    _, change = two(new={"latencies_ms": [1.0] * 4 + [None] * 36})
    assert change.not_timed == "fewer than 5 rows were timed in both"


def test_reports_of_other_rows_or_of_no_common_artifact_are_refused(handmade, written):
    old = written(handmade(), "old")
    with pytest.raises(EdgestillError, match="is of test rows"):
        compare_reports(old, written(handmade(gold=wrong_on(5)), "new"))
    with pytest.raises(EdgestillError, match=r"has student GGUF q4_0, wanted one of .*: student ONNX q4_0"):
        compare_reports(old, written(handmade(), "other", engine="gguf"))


def test_the_interval_of_a_median_ratio_is_seeded_and_holds_the_median():
    ratios = np.random.default_rng(3).lognormal(0.1, 0.2, 200)
    found = median_ratio(ratios, 0)
    assert found == median_ratio(ratios, 0)
    assert found.low < float(np.median(ratios)) == found.value < found.high
    assert median_ratio(np.ones(9), 0).low == median_ratio(np.ones(9), 0).high == 1.0


def test_an_artifact_that_no_longer_runs_is_a_regression(handmade, written):
    made = handmade()
    gguf = dataclasses.replace(made.measurement, engine="gguf", path="gguf/model-q4_0.gguf")
    before, after = written(made, "old", also=[gguf]), written(made, "new", left_out=["gguf does not fit into 100 MB"])
    assert compare_reports(before, after).regressions == ("student GGUF q4_0 is gone: gguf does not fit into 100 MB",)
    assert not compare_reports(before, written(made, "asked for one")).regressions
