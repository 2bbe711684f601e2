"""The answers of a loaded student on both engines: many at once, calibrated, from several threads."""

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgestill.runtime import Prediction, Student, load
from edgestill.runtime.confidence import load_temperature
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.student import CHUNK_ROWS

TEXTS = ["rain", "play music from the hall, please", "is it raining in Oslo", "lights off", "a", "so it goes"]
ENGINES = ["onnx", "gguf"]


@pytest.fixture(scope="module", params=ENGINES)
def labeller(request: pytest.FixtureRequest, encoder_bundle: Path) -> Student:
    return load(encoder_bundle, request.param, threads=1)


@pytest.fixture(scope="module", params=ENGINES)
def writer(request: pytest.FixtureRequest, tiny_bundle: Path) -> Student:
    return load(tiny_bundle, request.param, threads=1)


@pytest.fixture(scope="module", params=[f"{kind}, {engine}" for kind in ("encoder", "decoder") for engine in ENGINES])
def student(request: pytest.FixtureRequest, encoder_bundle: Path, tiny_bundle: Path) -> Student:
    kind, engine = request.param.split(", ")
    return load(encoder_bundle if kind == "encoder" else tiny_bundle, engine, threads=1)


def near(found: Prediction, wanted: Prediction) -> bool:
    """The same answer but for latency and the rounding of a batch."""
    same = [dataclasses.replace(x, probabilities={}, confidence=0.0, latency_ms=0.0) for x in (found, wanted)]
    values = [[*x.probabilities.values(), x.confidence] for x in (found, wanted)]
    return same[0] == same[1] and bool(np.allclose(*values, rtol=0, atol=0.02))


def test_many_rows_get_the_answers_of_one_by_one_in_order(student: Student) -> None:
    rows = [f"{text} {i}" for i in range(6) for text in TEXTS]
    assert len(rows) > CHUNK_ROWS
    alone, many = [student.predict(row) for row in rows], list(student.predict_many(rows))
    assert len(many) == len(rows)
    assert all(map(near, many, alone))
    assert len({one.confidence for one in alone}) > len(rows) / 2


def test_many_rows_are_read_a_chunk_at_a_time(labeller: Student) -> None:
    read = []
    answers = labeller.predict_many(read.append(i) or f"row {i}" for i in range(10**9))
    assert read == []
    next(answers)
    assert len(read) == CHUNK_ROWS
    for _ in range(CHUNK_ROWS):
        next(answers)
    assert len(read) == 2 * CHUNK_ROWS


@pytest.mark.parametrize("bad", ["", "word " * 200])
def test_the_rows_before_a_bad_one_are_answered_and_then_it_says_why(labeller: Student, bad: str) -> None:
    answers = labeller.predict_many([*TEXTS, bad, "rain"])
    assert [near(next(answers), labeller.predict(text)) for text in TEXTS] == [True] * len(TEXTS)
    with pytest.raises(EdgestillError) as caught:
        next(answers)
    with pytest.raises(EdgestillError) as alone:
        labeller.predict(bad)
    assert str(caught.value) == str(alone.value)


def test_a_row_for_which_the_session_has_no_room_comes_after_those_before_it(encoder_bundle: Path) -> None:
    student = load(encoder_bundle, "onnx", threads=1, max_tokens=12)
    answers = student.predict_many(["rain", "snow", "word " * 20])
    assert [near(next(answers), student.predict(text)) for text in ("rain", "snow")] == [True, True]
    with pytest.raises(EdgestillError, match="tokens, but the session holds at most 12"):
        next(answers)


def test_an_error_of_the_callers_own_rows_comes_after_the_answers_to_those_before_it(labeller: Student) -> None:
    def rows() -> Iterator[str]:
        yield from TEXTS
        raise OSError("the file ends here")

    answers = labeller.predict_many(rows())
    assert [near(next(answers), labeller.predict(text)) for text in TEXTS] == [True] * len(TEXTS)
    with pytest.raises(OSError, match="the file ends here"):
        next(answers)


def test_no_rows_give_no_answers(labeller: Student) -> None:
    assert list(labeller.predict_many([])) == []


def test_confidence_is_the_scaled_probability_and_the_probabilities_stay_raw(labeller: Student) -> None:
    shipped = load_temperature(labeller.folder, labeller.artifact.engine)
    assert shipped is not None
    assert abs(shipped.temperature - 1) > 0.1
    plain = Student(labeller.folder, labeller.bundle, labeller.task, labeller.artifact, labeller._open_file)
    plain.calibration = None
    for text in TEXTS:
        found, raw = labeller.predict(text), plain.predict(text)
        assert found.probabilities == raw.probabilities
        assert raw.confidence == pytest.approx(max(raw.probabilities.values()))
        odds = np.log(list(raw.probabilities.values())) / shipped.temperature
        assert found.confidence == pytest.approx((np.exp(odds) / np.exp(odds).sum()).max())


def test_a_set_is_as_sure_as_its_least_certain_label_held_or_not(labeller: Student) -> None:
    def asked(threshold: float) -> Student:
        task = dataclasses.replace(labeller.task, kind="multilabel", threshold=threshold)
        return Student(labeller.folder, labeller.bundle, task, labeller.artifact, labeller._open_file)

    names, half = labeller.task.label_names, [asked(0.5).predict(text).probabilities["weather"] for text in TEXTS]
    student = asked(float(np.median(half)))  # holds "weather" in some texts and not in others
    assert student.calibration is not None
    held = set()
    for text in TEXTS:
        found = student.predict(text)
        p = np.array([found.probabilities[name] for name in names])
        odds = np.log(p / (1 - p)) / student.calibration.temperature
        yes = 1 / (1 + np.exp(-odds))
        sure = [q if name in found.labels else 1 - q for name, q in zip(names, yes, strict=True)]
        assert found.confidence == pytest.approx(min(sure))
        held |= {len(found.labels)}
    assert len(held) > 1


def test_an_unsure_answer_is_given_and_marked(labeller: Student) -> None:
    sure = sorted(labeller.predict(text).confidence for text in TEXTS)
    threshold = sure[len(sure) // 2]  # one row is exactly as sure as that
    for found in (
        [labeller.predict(text, abstain_below=threshold) for text in TEXTS],
        [labeller.predict(text, abstain_below=1.0) for text in TEXTS],
    ):
        assert all(one.label == labeller.predict(text).label for one, text in zip(found, TEXTS, strict=True))
    marked = [labeller.predict(text, abstain_below=threshold).abstained for text in TEXTS]
    assert marked == [labeller.predict(text).confidence < threshold for text in TEXTS]
    assert sum(marked) == len(sure) // 2
    assert not any(labeller.predict(text).abstained for text in TEXTS)
    many = list(labeller.predict_many(TEXTS, abstain_below=(threshold + sure[-1]) / 2))
    assert 0 < sum(one.abstained for one in many) < len(TEXTS)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 80, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused_at_once(labeller: Student, threshold: float) -> None:
    for ask in (labeller.predict, labeller.predict_many):
        with pytest.raises(UsageError, match=r"abstain_below is .*, wanted a probability from 0 to 1"):
            ask("rain", abstain_below=threshold)


def test_other_labels_are_marked_by_their_plain_probability(writer: Student) -> None:
    found = writer.predict({"text": "tomato"}, labels=["red", "blue"], abstain_below=1.0)
    assert found.confidence == max(found.probabilities.values())
    assert found.abstained


def test_threads_get_the_answers_of_requests_alone(student: Student) -> None:
    def write() -> list[Any]:
        return [] if student.task.is_head else [student.generate("the tomato was", 6), student.score("a", ["b", "c"])]

    alone, written = [student.predict(text) for text in TEXTS], write()

    def same(turn: int) -> bool:
        if turn % 5 == 0:
            return write() == written
        if turn % 7 == 0:
            return all(map(near, student.predict_many(TEXTS), alone))
        place = turn % len(TEXTS)
        return student.predict(TEXTS[place]).probabilities == alone[place].probabilities

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(40)))


def test_a_stream_left_open_is_refused_in_its_own_thread_instead_of_waiting_for_itself(writer: Student) -> None:
    stream = writer.stream("the tomato was", 8)
    next(stream)
    with pytest.raises(EdgestillError, match="a stream of this student is still open in this thread"):
        writer.predict("tomato")
    stream.close()
    assert writer.predict("tomato").label in ("red", "green")


def test_another_thread_waits_for_a_stream(writer: Student) -> None:
    stream, alone = writer.stream("the tomato was", 8), writer.generate("the tomato was", 8)
    first = next(stream)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(writer.predict, "tomato")
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        assert first + "".join(stream) == alone
        assert waiting.result(30).label in ("red", "green")


def test_a_stream_taken_by_another_thread_is_that_threads(writer: Student) -> None:
    stream, alone = writer.stream("the tomato was", 8), writer.generate("the tomato was", 8)
    said = next(stream)
    with ThreadPoolExecutor(1) as pool, closing(stream):
        said += pool.submit(next, stream).result(30)
        with pytest.raises(EdgestillError, match="a stream of this student is still open in this thread"):
            pool.submit(writer.predict, "tomato").result(5)
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(writer.predict, "tomato")
            said += "".join(pool.submit(list, stream).result(30))
            assert waiting.result(30).label in ("red", "green")
    assert said == alone
    assert writer.predict("tomato").label in ("red", "green")


def test_one_text_in_place_of_a_list_of_labels_is_refused(writer: Student) -> None:
    with pytest.raises(UsageError, match=r"labels is the text 'music', wanted a list - type: labels=\['music'\]"):
        writer.predict("tomato", labels="music")


def test_info_says_what_is_loaded_and_what_else_the_bundle_is_good_for(labeller: Student, writer: Student) -> None:
    assert labeller.info()["calibration"] == dataclasses.asdict(labeller.calibration)
    assert writer.info()["calibration"] is None
    assert "compiler" in labeller.info()["engines"]["gguf"]
    assert labeller.info()["other_programs"] == []
    server, ollama = writer.info()["other_programs"]
    gguf = writer.folder / "gguf" / "model-q4_0.gguf"
    assert server == f"llama-server -m {gguf}"
    assert ollama == f"ollama create {writer.bundle.name} -f {gguf.with_name('Modelfile')}"
    assert gguf.with_name("Modelfile").is_file()
    json.dumps([labeller.info(), writer.info()])


def test_the_first_choice_is_onnx(encoder_bundle: Path) -> None:
    assert load(encoder_bundle).info()["engine"] == "onnx"
