"""Manifests: what is saved comes back, what is foreign is refused, and a failed write costs nothing."""

import dataclasses
import hashlib
import json
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


@dataclass(frozen=True)
class Leaf:
    name: str
    share: float | None


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    by_name: dict[str, Leaf]
    best: Leaf | None
    marks: tuple[int, ...]
    schema: str = "test-tree/1"


LEAF = st.builds(Leaf, TEXT, st.none() | NUMBER)
TREES = st.builds(
    Tree,
    st.lists(LEAF, max_size=3).map(tuple),
    st.dictionaries(TEXT, LEAF, max_size=3),
    st.none() | LEAF,
    st.lists(st.integers(), max_size=3).map(tuple),
)
SMALL = Tree((Leaf("oak", 0.5),), {"ash": Leaf("ash", None)}, None, (1, 2))


@settings(max_examples=40, deadline=None)
@given(tree=TREES)
def test_what_is_saved_is_what_is_loaded(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.json"
    manifest.save(path, tree)
    assert manifest.load(Tree, path) == tree


def changed(tmp_path: Path, **keys: object) -> Path:
    """SMALL on disk with some keys replaced; a key set to ... is taken out."""
    data = {key: value for key, value in (dataclasses.asdict(SMALL) | keys).items() if value is not ...}
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_another_schema_is_refused_with_both_names(tmp_path: Path) -> None:
    with pytest.raises(EdgestillError, match="schema 'test-tree/2', wanted 'test-tree/1'"):
        manifest.load(Tree, changed(tmp_path, schema="test-tree/2"))


@pytest.mark.parametrize(
    "keys", [{"extra": 1}, {"marks": ...}, {"leaves": [{"name": "oak"}]}, {"best": {"name": "a", "share": 1, "new": 2}}]
)
def test_an_unknown_or_missing_key_is_refused_at_any_depth(tmp_path: Path, keys: dict[str, object]) -> None:
    with pytest.raises(EdgestillError, match="wanted the keys"):
        manifest.load(Tree, changed(tmp_path, **keys))


@pytest.mark.parametrize("text", ["{", "\x00", "[]", "7", '{"schema": null}'])
def test_a_file_that_is_no_manifest_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tree.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"is not JSON|has schema None"):
        manifest.load(Tree, path)


def test_a_missing_manifest_says_that_the_folder_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(EdgestillError, match="the folder is not whole"):
        manifest.load(Tree, tmp_path / "tree.json")


def test_a_full_disk_leaves_the_old_file_and_no_rubble(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    manifest.save(path, SMALL)
    partial = path.with_name(path.name + manifest.PARTIAL_SUFFIX)
    partial.symlink_to("/dev/full")
    with pytest.raises(EdgestillError, match=r"No space left on device \(\d+ MB free there\)"):
        manifest.write_json(path, {"new": True})
    assert manifest.load(Tree, path) == SMALL
    assert [p.name for p in tmp_path.iterdir()] == ["tree.json"]


LIMITED = """
import resource, sys
from pathlib import Path
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    manifest.write_jsonl(Path(sys.argv[1]), [{"text": "x" * 99}] * 99)
except EdgestillError as error:
    print(error)
"""


def test_a_file_size_limit_met_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    manifest.write_jsonl(path, [{"old": 1}])
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"cannot write {path}: File too large")
    assert path.read_text(encoding="utf-8") == '{"old": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_folder_that_is_a_file_is_one_line_and_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(EdgestillError, match="cannot write"):
        manifest.write_json(tmp_path / "taken" / "tree.json", {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: object, rng: random.Random) -> object:
    if isinstance(value, dict):
        return {key: shuffled(value[key], rng) for key in rng.sample(sorted(value), len(value))}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


@given(value=JSON, seed=st.integers(0, 99))
def test_the_hash_of_a_value_does_not_depend_on_the_order_of_its_keys(value: object, seed: int) -> None:
    assert manifest.sha256_json(shuffled(value, random.Random(seed))) == manifest.sha256_json(value)


def test_the_hash_of_a_value_depends_on_the_order_of_lists_and_on_every_value() -> None:
    values: list[object] = [[1, 2], [2, 1], [1, 2, None], {"a": [1, 2]}, {"b": [1, 2]}, "[1,2]", [1, "2"]]
    assert len({manifest.sha256_json(value) for value in values}) == len(values)


def test_the_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-4, example "abc"
    assert manifest.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest.sha256_json({"b": "ü", "a": 1}) == hashlib.sha256('{"a":1,"b":"ü"}'.encode()).hexdigest()


def test_a_line_that_is_no_object_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n[2]\n', encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"rows\.jsonl:3 holds list"):
        list(manifest.read_jsonl(path))


@dataclass(frozen=True)
class Grown:
    """A manifest that got a key after its first files."""

    name: str
    added: int = field(default=3, metadata=manifest.LATER)
    schema: str = "grown/1"


def test_a_key_that_came_later_may_be_missing_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "grown.json"
    path.write_text('{"name": "x", "schema": "grown/1"}', encoding="utf-8")
    assert manifest.load(Grown, path) == Grown("x", 3)
    manifest.save(path, Grown("x", 4))
    assert manifest.load(Grown, path).added == 4
    path.write_text('{"added": 4, "schema": "grown/1"}', encoding="utf-8")
    with pytest.raises(EdgestillError, match="wanted the keys"):
        manifest.load(Grown, path)
