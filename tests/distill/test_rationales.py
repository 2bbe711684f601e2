"""Reasons: which of them are learnt from, and what they are like."""

import dataclasses
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.distill.base import Base, prepare_base
from edgestill.distill.dataset import Row, row_id
from edgestill.distill.labels import build_task
from edgestill.distill.ledger import Tally
from edgestill.distill.rationales import BLANK, Counts, RationaleTally, count, covered, facts_line, syllables
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.causal import make_example
from edgestill.distill.student.train import train_student
from edgestill.distill.student_section import TrainSection
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.runtime.task import load_tokenizer

Pairs = list[tuple[Row, Annotation]]
# Counted by hand, as dictionaries part them.
KNOWN = {
    "a": 1, "the": 1, "be": 1, "cat": 1, "made": 1, "makes": 1, "asked": 1, "called": 1, "smiled": 1, "rules": 1,
    "files": 1, "sky": 1, "free": 1, "true": 1, "use": 1, "whole": 1, "style": 1, "based": 1, "it's": 1, "don't": 1,
    "table": 2, "little": 2, "boxes": 2, "wanted": 2, "needed": 2, "reading": 2, "because": 2, "sentence": 2,
    "people": 2, "premise": 2, "statement": 2, "changes": 2, "churches": 2, "houses": 2, "handled": 2, "agree": 2,
    "ages": 2, "tables": 2, "voted": 2, "useful": 2, "clearly": 2, "well-known": 2, "implies": 2, "describes": 2,
    "beautiful": 3, "syllable": 3, "example": 3, "examples": 3, "agreement": 3, "element": 3, "explanation": 4,
    "hypothesis": 4, "contradiction": 4, "inconclusive": 4, "university": 5,
}  # fmt: skip


def pairs_of(count: int, without: int = 0) -> Pairs:
    """Rows with a reason, and after them some for which the teacher gave none."""
    found = []
    for i in range(count + without):
        text = f"row {i}"
        reason = f"because of {i}" if i < count else None
        found.append(
            (Row(row_id(text), text, None, "train"), Annotation(row_id(text), "red", None, reason, 1, 1, None, ""))
        )
    return found


def kept(pairs: Pairs, **train: Any) -> list[str | None]:
    return [covered(answer, TrainSection(**train)).rationale for _, answer in pairs]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_the_rows_of_a_smaller_share_are_among_those_of_a_larger(one: float, other: float, seed: int) -> None:
    pairs = pairs_of(60, without=3)
    low, high = (
        {i for i, reason in enumerate(kept(pairs, rationale_coverage=share, seed=seed)) if reason}
        for share in sorted((one, other))
    )
    assert low <= high <= set(range(60))


@pytest.mark.parametrize("share", [0.0, 0.15, 0.33, 0.5, 0.66, 0.85, 1.0])
def test_the_share_is_kept_and_the_rest_is_as_it_was(share: float) -> None:
    pairs = pairs_of(2_000)
    found = [covered(answer, TrainSection(rationale_coverage=share)) for _, answer in pairs]
    reasons = [answer.rationale for answer in found if answer.rationale is not None]
    assert len(reasons) == pytest.approx(2_000 * share, abs=4 * (2_000 * share * (1 - share)) ** 0.5)
    for (_, before), after in zip(pairs, found, strict=True):
        assert dataclasses.replace(after, rationale=before.rationale) == before
        assert after.rationale in (before.rationale, None)


def test_a_rows_lot_depends_on_itself_and_the_seed_alone() -> None:
    pairs = pairs_of(300)
    whole = dict(zip([row.id for row, _ in pairs], kept(pairs, rationale_coverage=0.5), strict=True))
    some = random.Random(0).sample(pairs, 100)
    assert kept(some, rationale_coverage=0.5) == [whole[row.id] for row, _ in some]
    assert kept(pairs, rationale_coverage=0.5, seed=8) != list(whole.values())


def test_what_is_missing_is_masked_or_learnt_as_a_blank_also_where_the_teacher_gave_none() -> None:
    pairs = pairs_of(40, without=10)
    assert kept(pairs) == [*(answer.rationale for _, answer in pairs[:40]), *[None] * 10]
    masked, blank = (kept(pairs, rationale_coverage=0.5, missing_rationales=how) for how in ("mask", "blank"))
    assert [reason or None for reason in blank] == masked
    assert set(blank) - set(masked) == {BLANK}
    assert 0 < sum(reason is None for reason in masked[:40]) < 40
    assert masked[40:] == [None] * 10


@dataclasses.dataclass(frozen=True)
class Bench:
    base: Base
    tokenizer: Any

    def recipe(self, **train: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "name": "reasons",
                "task": {"instruction": "Which colour?", "labels": ["red", "green"]},
                "data": {"pool": "pool.jsonl"},
                "teacher": {"kind": "replay", "path": "teacher.jsonl"},
                "student": {
                    "base": self.base.spec,
                    "lora": {"r": 4, "alpha": 8},
                },
                "train": {"epochs": 1, "learning_rate": 0.01, "batch_rows": 4, "precision": "float32", **train},
            }
        )

    def weights(self, folder: Path, **train: Any) -> bytes:
        """The adapter's bytes after a training."""
        recipe = self.recipe(**train)
        task = build_task(recipe, self.base, self.tokenizer)
        pairs = pairs_of(12, without=2)
        train_student(recipe, self.base, task, self.tokenizer, pairs, pairs[:2], folder, "0f")
        return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def bench(tiny_base: Path) -> Bench:
    return Bench(prepare_base(str(tiny_base)), load_tokenizer(tiny_base))


def test_a_masked_row_has_no_second_task_and_a_blank_one_teaches_to_write_nothing(bench: Bench) -> None:
    task = build_task(bench.recipe(), bench.base, bench.tokenizer)
    ((row, answer),), examples = pairs_of(1), {}
    for how in ("mask", "blank"):
        train = TrainSection(rationale_coverage=0, missing_rationales=how)  # type: ignore[arg-type]
        examples[how] = make_example(task, bench.tokenizer, row.text, covered(answer, train))
    assert examples["mask"].rationale is None
    assert examples["blank"].rationale is not None
    *written, end = examples["blank"].rationale.completion
    assert (bench.tokenizer.decode(written), end) == (" ", task.eos_token_id)
    assert examples["blank"].label == examples["mask"].label


def test_without_any_reason_training_is_that_of_labels_alone_bit_for_bit(bench: Bench, tmp_path: Path) -> None:
    labels = bench.weights(tmp_path / "labels", objective="label")
    assert bench.weights(tmp_path / "none", rationale_coverage=0.0) == labels
    assert bench.weights(tmp_path / "blank", rationale_coverage=0.0, missing_rationales="blank") != labels
    some = bench.weights(tmp_path / "some", rationale_coverage=0.5)
    assert some not in (labels, bench.weights(tmp_path / "all"))


def test_a_student_that_learnt_no_reason_is_not_asked_for_one(bench: Bench) -> None:
    assert bench.recipe(rationale_coverage=0.1).learns_rationale
    assert not bench.recipe(rationale_coverage=0).learns_rationale
    assert bench.recipe(rationale_coverage=0, missing_rationales="blank").learns_rationale


@pytest.mark.parametrize(("word", "wanted"), KNOWN.items())
def test_syllables_of_words_with_known_counts(word: str, wanted: int) -> None:
    assert syllables(word) == syllables(word.upper()) == wanted


@pytest.mark.parametrize(
    ("text", "words", "sentences"),
    [
        ("It is red.", 3, 1),
        ("It is red", 3, 1),
        ('It is 3.5 cm. "Yes!" he said. This, e.g. that, is the U.S. it is big', 16, 3),
        ("Why?! Because... it is so.", 5, 2),
        ("", 0, 0),
        ("...", 0, 0),
        ("One. 2 more (of them). Done", 6, 3),
    ],
)
def test_words_and_sentences(text: str, words: int, sentences: int) -> None:
    found = count(text)
    assert (found.words, found.sentences) == (words, sentences)


def test_reading_ease_is_the_published_formula() -> None:
    assert Counts(words=100, sentences=5, syllables=150).flesch == pytest.approx(206.835 - 1.015 * 20 - 84.6 * 1.5)
    assert count("The cat sat on the mat.").flesch == pytest.approx(116.145)
    assert (Counts().flesch, count("?!").flesch) == (None, None)


WORDS = st.lists(st.sampled_from([*KNOWN, "so.", "Why?", "3.5", "naïve", "这"]), min_size=1, max_size=30).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=40), st.integers(0, 5))
def test_the_streamed_numbers_are_those_of_all_reasons_at_once(texts: list[str], others: int) -> None:
    tally = RationaleTally()
    for text in texts:
        tally.add(text)
    facts = tally.facts(len(texts) + others)
    assert facts is not None
    lengths = [count(text).words for text in texts]
    assert facts["rate"] == len(texts) / (len(texts) + others)
    assert facts["words"]["mean"] == pytest.approx(statistics.mean(lengths))
    assert facts["characters"]["mean"] == pytest.approx(statistics.mean(map(len, texts)))
    ease = [each for text in texts if (each := count(text).flesch) is not None]
    for name, values in (("words", lengths), ("characters", [len(text) for text in texts])):
        wanted = None if len(texts) < 2 else pytest.approx(statistics.stdev(values), abs=1e-6)
        assert facts[name]["sd"] == wanted
    assert facts["flesch_sd"] == (None if len(ease) < 2 else pytest.approx(statistics.stdev(ease), abs=1e-6))
    ordered = sorted(lengths)
    for percent in (5, 50, 95):
        place = -(-percent * len(ordered) // 100) - 1  # nearest rank
        assert facts["words"][f"p{percent}"] == ordered[place]
    joined = sum(map(count, texts), Counts())
    assert facts["flesch"] == joined.flesch


def test_no_reasons_have_no_facts_and_memory_does_not_grow_with_the_rows() -> None:
    tally = RationaleTally()
    assert tally.facts(10) is None
    for i in range(2_000):
        tally.add("so it is " * (1 + i % 7))
    assert len(tally.lengths) == 7
    facts = tally.facts(4_000)
    assert facts is not None
    assert facts_line(facts) == "50.0% have a reason: 12 words (3 to 21), Flesch reading ease 110"


def test_the_ledger_counts_the_reasons_of_accepted_rows() -> None:
    tally = Tally()
    for row, answer in pairs_of(3, without=1):
        tally.add(row, answer)
    tally.add(Row("r", "r", None, "train"), Rejection("r", "unparsable", "", "because it is so"))
    facts = tally.reasons.facts(tally.accepted)
    assert facts is not None
    assert (facts["rate"], facts["words"]["p50"], tally.reasons.count) == (0.75, 3, 3)
