"""A set of labels has one spelling, which is read back as the same set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.runtime import label_sets
from edgestill.runtime.errors import EdgestillError

LABELS = ["lights", "music", "the weather"]

names = st.text(min_size=1, max_size=12).filter(
    lambda name: name == name.strip() and "|" not in name and name != label_sets.EMPTY
)
tasks = st.lists(names, min_size=1, max_size=6, unique=True)


@given(tasks, st.data())
def test_every_set_is_read_back_from_its_text(labels: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(labels), max_size=8))
    text = label_sets.join(chosen, labels)
    assert label_sets.split(text) == tuple(label for label in labels if label in chosen)
    assert label_sets.read(text, labels) == label_sets.read(chosen, labels) == text


@given(tasks, st.data())
def test_equal_sets_have_equal_texts_and_others_have_others(labels: list[str], data: st.DataObject) -> None:
    one, two = (data.draw(st.lists(st.sampled_from(labels), max_size=8)) for _ in range(2))
    assert (label_sets.join(one, labels) == label_sets.join(two, labels)) == (set(one) == set(two))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "(none)"),
        ("", "(none)"),
        (" (none) ", "(none)"),
        ("music", "music"),
        (["music", "lights", "music"], "lights | music"),
        ("the weather|lights", "lights | the weather"),
        ("  music |  lights ", "lights | music"),
    ],
)
def test_a_field_of_a_record_is_a_list_or_text_in_any_order(value: object, text: str) -> None:
    assert label_sets.read(value, LABELS) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("music | rain", "label 'rain' is not one of"),
        (["Music"], "label 'Music' is not one of"),
        ("music |", "label '' is not one of"),
        ("(none) | music", r"label '\(none\)' is not one of"),
        (None, "None are neither a list of names nor text"),
        (["music", 3], "neither"),
        ({"music": True}, "neither"),
    ],
)
def test_what_is_no_set_of_these_labels_is_refused(value: object, words: str) -> None:
    with pytest.raises(EdgestillError, match=words):
        label_sets.read(value, LABELS)
