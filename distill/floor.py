"""What needs no language model: TF-IDF and logistic regression on the teacher's labels. scikit-learn; runs no test."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.distill.dataset import Row
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime import label_sets
from edgestill.runtime.task import Task

FLOOR_STRENGTHS = (1.0, 10.0, 100.0)
MOST_STEPS = 2000
FEATURES = {"words 1-2": ("word", (1, 2)), "characters 2-5": ("char_wb", (2, 5))}

Pair = tuple[Row, Annotation]


class OneVsRest:
    """A logistic regression a label, over L labels of which a text has any number; used as a scikit-learn pipeline is.

    A label that all training rows agree about has nothing to fit: its share, 0 or 1, is its probability.
    """

    def __init__(self, labels: Sequence[str], vectors: Any, strength: float) -> None:
        """`classes_` names the columns; `vectors` is a vectorizer not yet fitted, `strength` C of each regression."""
        self.classes_ = list(labels)
        self._vectors, self._strength = vectors, strength
        self._models: list[Any] = []

    def fit(self, texts: Sequence[str], answers: Sequence[str]) -> None:
        """Learn from N texts and their sets, as `label_sets` writes them."""
        from sklearn.linear_model import LogisticRegression

        vectors = self._vectors.fit_transform(texts)
        sets = [label_sets.split(answer) for answer in answers]
        for label in self.classes_:
            held = np.array([label in names for names in sets])
            constant = held.all() or not held.any()
            model = LogisticRegression(C=self._strength, max_iter=MOST_STEPS)
            self._models.append(float(held[0]) if constant else model.fit(vectors, held))

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N, L): how likely each label is, whatever the others are."""
        vectors = self._vectors.transform(texts)
        columns = [
            np.full(len(texts), model) if isinstance(model, float) else model.predict_proba(vectors)[:, 1]
            for model in self._models
        ]
        return np.stack(columns, 1)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The labels that are likelier than not, as `label_sets` writes them."""
        likely = self.predict_proba(texts) >= 0.5
        return [label_sets.join((self.classes_[i] for i in np.flatnonzero(row)), self.classes_) for row in likely]


def fit_floor(train: Sequence[Pair], dev: Sequence[Pair], task: Task | None = None) -> tuple[Any, str, float]:
    """(fitted pipeline, what it is, agreement on dev) of the best of two features and three strengths.

    With a multilabel `task` the regressions are one a label, and agreement is on the whole set; with choices it is of
    the likeliest that the row has.
    """
    texts, answers = [row.text for row, _ in train], [answer.label for _, answer in train]
    best: tuple[Any, str, float] | None = None
    for name, strength, model in _candidates(task):
        model.fit(texts, answers)
        if task is not None and task.choices is not None:
            said = [task.written(task.chosen(floor_chances(model, task, row.text))) for row, _ in dev]
        else:
            said = model.predict([row.text for row, _ in dev])
        score = sum(label == answer.label for label, (_, answer) in zip(said, dev, strict=True)) / len(dev)
        if best is None or score > best[2]:
            each = " a label" if task is not None and task.is_multilabel else ""
            best = (model, f"TF-IDF of {name}, logistic regression{each} C={strength:g}", score)
    assert best is not None
    return best


def floor_chances(model: Any, task: Task, text: str) -> list[float]:
    """What a fitted pipeline gives the task's L labels, those that it never saw 0.

    Letters that a text has no choice for get 0 and the others share the 1, evenly where none of them was seen.
    """
    known = dict(zip(model.classes_, model.predict_proba([text])[0], strict=True))
    chances = [float(known.get(name, 0.0)) for name in task.label_names]
    if task.choices is None:
        return chances
    asked = len(task.choices_in(text))
    total = sum(chances[:asked])
    shares = [chance / total for chance in chances[:asked]] if total else [1 / asked] * asked
    return [*shares, *[0.0] * (len(chances) - asked)]


def _candidates(task: Task | None) -> Iterator[tuple[str, float, Any]]:
    """(features, strength, pipeline not yet fitted)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    for name, (analyzer, ngrams) in FEATURES.items():
        for strength in FLOOR_STRENGTHS:
            vectors = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True)
            if task is not None and task.is_multilabel:
                yield name, strength, OneVsRest(task.label_names, vectors, strength)
            else:
                yield name, strength, make_pipeline(vectors, LogisticRegression(C=strength, max_iter=MOST_STEPS))
