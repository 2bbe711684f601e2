"""What an experiment's cells say together: the statistics, the table and the pictures."""

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgestill.benchmarks import plot
from edgestill.benchmarks.experiments.folder import read_cells, write_report
from edgestill.benchmarks.experiments.pictures import side_by_side
from edgestill.benchmarks.experiments.statistics import mean_difference, mean_right, pooled
from edgestill.benchmarks.experiments.table import cells, terminal_text
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.experiment_files import (
    DONE_NAME,
    ArmDone,
    ExperimentCell,
    ExperimentDone,
    RowIds,
    TeacherUse,
    cell_path,
    pack_bits,
    rows_path,
    unpack_bits,
)
from edgestill.runtime.metrics import Estimate, mcnemar_exact, unseen_share, wilson

SEEDS = (7, 8, 9)


def drawn(table: Any) -> dict[int, dict[str, float]]:
    """(S, N) numbers as `pooled` takes them."""
    return {seed: {str(row): float(value) for row, value in enumerate(line)} for seed, line in enumerate(table)}


@pytest.mark.parametrize(("of_seeds", "of_rows", "noise"), [(0.02, 0.1, 0.3), (0.05, 0.02, 0.1), (0.0, 0.1, 0.3)])
def test_the_interval_covers_the_mean_of_other_seeds_and_rows(of_seeds: float, of_rows: float, noise: float) -> None:
    rng, hits, trials = np.random.default_rng(0), 0, 600
    for _ in range(trials):
        table = rng.normal(0, of_seeds, (4, 1)) + rng.normal(0, of_rows, (1, 80)) + rng.normal(0, noise, (4, 80))
        found = pooled(drawn(0.5 + table))
        hits += found.low <= 0.5 <= found.high
    assert 0.93 <= hits / trials <= 0.99


def test_a_row_interval_that_ignores_the_seeds_would_be_too_narrow() -> None:
    rng = np.random.default_rng(1)
    table = 0.5 + np.array([[-0.1], [0.0], [0.1]]) + rng.normal(0, 0.1, (1, 500))
    both, means = pooled(drawn(table)), table.mean(1)
    of_rows = pooled({0: {str(i): float(v) for i, v in enumerate(table.mean(0))}})
    assert both.value == pytest.approx(of_rows.value)
    assert both.high - both.low > 3 * (of_rows.high - of_rows.low)
    assert both.high - both.value == pytest.approx(4.303 * means.std(ddof=1) / np.sqrt(3), rel=0.1), "t of 2 freedoms"


def test_seeds_with_test_rows_of_their_own_are_compared_by_their_means() -> None:
    means = [0.5, 0.6, 0.8]
    values = {i: {f"{i}-{j}": mean for j in range(10)} for i, mean in enumerate(means)}
    found = pooled(values)
    half = 4.3027 * np.std(means, ddof=1) / np.sqrt(3)
    assert (found.value, found.high) == (pytest.approx(np.mean(means)), pytest.approx(np.mean(means) + half, rel=1e-4))


def test_one_seed_has_wilsons_interval_and_so_have_answers_that_are_all_right() -> None:
    one = drawn([[1, 0, 1, 1, 1]])
    assert mean_right(one) == wilson(4, 5)
    assert mean_right(drawn([[1] * 30, [1] * 30])) == wilson(30, 30)


def test_no_difference_on_any_row_leaves_room_for_rows_that_nobody_saw() -> None:
    assert mean_difference(drawn([[0] * 50, [0] * 50])) == Estimate(0.0, -unseen_share(50), unseen_share(50))


def test_no_interval_of_several_seeds_is_without_width() -> None:
    opposite = pooled(drawn([[1, *[0] * 49], [-1, *[0] * 49]]))
    assert opposite.value == 0
    assert 0.02 < opposite.high < 0.4, "t of one freedom"
    apart = {i: {f"{i}-{j}": float(j < 17) for j in range(20)} for i in range(2)}
    assert pooled(apart).high > 0.95 > pooled(apart).value == 0.85


def test_a_row_that_one_seed_lacks_changes_little() -> None:
    rng = np.random.default_rng(3)
    whole = drawn((rng.random((3, 300)) < 0.7).astype(float))
    lacking = {seed: {one: v for one, v in rows.items() if (seed, one) != (0, "5")} for seed, rows in whole.items()}
    a, b = pooled(whole), pooled(lacking)
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.1)


def test_shares_stay_between_none_and_all() -> None:
    found = mean_right(drawn([[1] * 20, [1] * 19 + [0], [1] * 12 + [0] * 8]))
    assert found.high == 1.0
    assert found.low > 0


@pytest.mark.parametrize("right", [[True], [False, False, True], [False] * 9, [True, False] * 13])
def test_bits_are_read_as_they_were_packed(right: list[bool]) -> None:
    assert unpack_bits(pack_bits(right), len(right)) == right


def write_cell(folder: Path, arm: str, seed: int, right: Sequence[bool], ids: Sequence[str], **facts: Any) -> None:
    hashed, found = manifest.sha256_json(list(ids)), wilson(sum(right), len(right))
    assert found is not None
    cell = ExperimentCell(
        arm=arm,
        seed=seed,
        recipe_sha256="r",
        inputs_sha256="i",
        annotations_sha256="a",
        rows={"asked": 100, "accepted": 90, "rejected": 10, "not_selected": 0, "pending": 0, "learnt_from": 90},
        learning=TeacherUse(4000, 1000, "0.012"),
        testing=TeacherUse(400, 100, "0.001"),
        training_tokens=5000,
        training_rows=90,
        annotate_s=1.0,
        train_s=12.0,
        peak_rss_bytes=500_000_000,
        metric="gold",
        test_rows=len(right),
        row_ids_sha256=hashed,
        right=pack_bits(right),
        accuracy=found,
        label_quality=wilson(80, 90),
        asked_quality=wilson(81, 90),
        selection=None,
        gate=None,
        device="a processor, 2 cores",
        packages={"edgestill": "0.1.0"},
    )
    manifest.save(cell_path(folder, arm, seed), dataclasses.replace(cell, **facts))
    manifest.save(rows_path(folder, hashed), RowIds(tuple(ids)))


IDS = [f"{i:04x}" for i in range(200)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three arms: all, an active one with fewer rows and tokens, and its random control, which misses a seed."""
    rng = np.random.default_rng(3)
    hard = rng.random(200)
    fewer = {"rows": {"asked": 30, "accepted": 30, "rejected": 0, "learnt_from": 30}}
    fewer |= {"learning": TeacherUse(1200, 300, "0.0036")}
    for seed in SEEDS:
        write_cell(tmp_path, "all", seed, (hard + rng.normal(0, 0.1, 200) < 0.85).tolist(), IDS)
        write_cell(tmp_path, "entropy", seed, (hard + rng.normal(0, 0.1, 200) < 0.75).tolist(), IDS, **fewer)
        if seed != 9:
            write_cell(tmp_path, "random-30", seed, (hard + rng.normal(0, 0.1, 200) < 0.65).tolist(), IDS, **fewer)
    arms = (
        ArmDone("all", "all", None, False, SEEDS),
        ArmDone("entropy", "entropy", "random-30", False, SEEDS),
        ArmDone("random-30", "random", None, True, SEEDS[:2]),
    )
    manifest.save(tmp_path / DONE_NAME, ExperimentDone("tried", "all", SEEDS, "gold", arms))
    return tmp_path


def test_arms_are_compared_with_the_reference_and_with_their_own_control(folder: Path) -> None:
    result = read_cells(folder)
    found = {(one.arm, one.against): one for one in result.differences}
    assert set(found) == {("entropy", "all"), ("random-30", "all"), ("entropy", "random-30")}
    assert [one.seed for one in found["entropy", "random-30"].seeds] == [7, 8], "the control has no seed 9 yet"
    assert found["entropy", "all"].difference.high < 0 < found["entropy", "random-30"].difference.low
    assert result.missing == ("random-30 9",)


def test_a_difference_is_the_mean_over_rows_and_seeds_and_each_seed_has_mcnemars_test(folder: Path) -> None:
    result = read_cells(folder)
    one = next(d for d in result.differences if (d.arm, d.against) == ("entropy", "all"))
    values = {arm.name: [seed.accuracy.value for seed in arm.seeds] for arm in result.arms}
    gains = np.subtract(values["entropy"], values["all"])
    assert [seed.difference for seed in one.seeds] == pytest.approx(gains.tolist())
    assert one.difference.value == pytest.approx(gains.mean())
    assert all(seed.p_value == mcnemar_exact(seed.only_arm, seed.only_against) for seed in one.seeds)


def test_rows_that_only_one_arm_answered_are_in_no_difference(folder: Path) -> None:
    write_cell(folder, "entropy", 7, [True] * 100, IDS[100:])
    result = read_cells(folder)
    one = next(d for d in result.differences if (d.arm, d.against) == ("entropy", "all"))
    cell = manifest.load(ExperimentCell, cell_path(folder, "all", 7))
    missed = 1 - np.mean(unpack_bits(cell.right, 200)[100:])
    assert one.seeds[0].difference == pytest.approx(missed)
    assert one.rows == 200
    assert result.test_rows == (100, 200)


def test_an_arms_means_are_over_its_seeds_and_unknown_where_one_is(folder: Path) -> None:
    arms = {arm.name: arm for arm in read_cells(folder).arms}
    assert (arms["all"].teacher_tokens, arms["all"].teacher_usd) == (5000, "0.012000000")
    assert (arms["entropy"].rows_learnt_from, arms["entropy"].teacher_tokens) == (30, 1500)
    write_cell(folder, "all", 8, [True] * 200, IDS, learning=TeacherUse(None, None, None), label_quality=None)
    arm = next(arm for arm in read_cells(folder).arms if arm.name == "all")
    assert (arm.teacher_tokens, arm.teacher_usd, arm.label_quality) == (None, None, None)
    assert arm.asked_quality == pytest.approx(0.9)


def test_the_table_holds_every_arm_with_its_figures_and_says_what_is_missing(folder: Path) -> None:
    result = write_report(folder)
    page = (folder / "table.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    assert rows[1].startswith("| all | 100 | 90 | 5,000 | 0.0120 | ")
    assert "| random-30 (control) |" in page
    assert "Not finished: random-30 9" in page
    assert "minus its random control" in rows[0]
    assert all(name in page for name in ("accuracy-by-rows.svg", "accuracy-by-teacher-tokens.svg"))
    text = terminal_text(result)
    assert max(map(len, text.splitlines())) <= 120
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["all", "entropy", "random-30"]
    assert cells(result)[2][7].startswith("-"), "a result that went down is shown like any other"


def test_the_result_is_read_back_as_it_was_written(folder: Path) -> None:
    from edgestill.benchmarks.experiments.result import ExperimentResult

    assert manifest.load(ExperimentResult, write_report(folder) and folder / "experiment.json") == read_cells(folder)


def test_the_pictures_stand_alone_and_hold_every_arm_with_its_interval(folder: Path) -> None:
    result = write_report(folder)
    for name, text in (("rows", "rows learnt from"), ("teacher-tokens", "teacher tokens")):
        svg = (folder / f"accuracy-by-{name}.svg").read_text(encoding="utf-8")
        root = ET.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        titles = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}title")]
        for arm in result.arms:
            share = f"{arm.name}: {100 * arm.accuracy.value:.1f} % [{100 * arm.accuracy.low:.1f}, "
            assert any(title.startswith(share) for title in titles)
        assert text in svg
        used = set(re.findall(r"var\((--\w+)[,)]", svg))
        assert used <= set(re.findall(r"(--\w+):", svg)) | {"--hue"}, "every colour is said in the file itself"


def test_arms_with_the_same_number_stand_side_by_side_and_others_where_they_are() -> None:
    share = Estimate(0.5, 0.4, 0.6)
    points = [plot.Point(str(i), "", x, share) for i, x in enumerate((1500, 300, 300, 40, 301))]
    moved = side_by_side(points)
    assert [point.name for point in moved] == ["0", "1", "2", "3", "4"]
    assert (moved[0].x, moved[3].x) == pytest.approx((1500, 40))
    crowd = [moved[i].x for i in (1, 2, 4)]
    assert len({round(x) for x in crowd}) == 3
    assert all(abs(x / 300 - 1) < 0.1 for x in crowd)
    assert side_by_side([]) == []


def test_no_picture_is_left_of_a_figure_that_nobody_knows(folder: Path) -> None:
    write_report(folder)
    nothing = {"learning": TeacherUse(None, None, None)}
    for arm, seeds in (("all", SEEDS), ("entropy", SEEDS), ("random-30", SEEDS[:2])):
        for seed in seeds:
            write_cell(folder, arm, seed, [True, False] * 100, IDS, **nothing)
    write_report(folder)
    assert (folder / "accuracy-by-rows.svg").exists()
    assert not (folder / "accuracy-by-teacher-tokens.svg").exists()
    assert "teacher-tokens.svg" not in (folder / "table.md").read_text(encoding="utf-8")


def test_an_experiment_without_a_finished_cell_says_so(tmp_path: Path) -> None:
    arms = (ArmDone("all", "all", None, False, ()),)
    manifest.save(tmp_path / DONE_NAME, ExperimentDone("tried", "all", SEEDS, "gold", arms))
    with pytest.raises(EdgestillError, match="is finished"):
        write_report(tmp_path)
