"""The bundle's model card and the files that other programs look for: README.md, genai_config.json, Modelfile."""

from collections.abc import Sequence
from typing import Any

from edgestill.export.architecture import read_shape
from edgestill.export.build import Build
from edgestill.export.gates.gate import Gate, gate_table
from edgestill.export.grid import Grid
from edgestill.export.web import how_to_load
from edgestill.runtime.bundle import ONNX_LABELS
from edgestill.runtime.task import Task

CARD = """---
license: {license}
base_model: {base}
tags: [edgestill, {tags}, {hub_task}, distillation]
---
# {name}

{instruction}

{kind}

A small student distilled by edgestill from the teacher **{teacher}** ({teacher_kind}; licence note: {license_note}).

- Base: `{base}`, weights {weights_note}, tokenizer {tokenizer_origin}.
- Trained on {train} rows with the teacher's {answers}{reasons}; {dev} rows held out for development,
  {test} for the report.
- {parameters:,} parameters at {bits:.2f} bits a weight on one grid; {formats} exactly these numbers.
- Results are in the report of this build; the rows and the predictions behind them lie in `reference/`.

## What was checked
Each figure was measured when these files were built; one above its limit would have ended the build.

{gates}

## Use
```python
from edgestill.runtime import load

student = load("path/to/this/folder")
print(student.predict("{example}"))
```
{shown}
Other programs: {others}
{hub}
"""

# Ollama's own words, see its reference of the Modelfile: the prompt is written out, so that no chat template is put
# around it; what the student writes ends at `stop`.
MODELFILE = """# Untested: nobody ran this with Ollama yet. In this folder type: ollama create NAME -f Modelfile
FROM ./{gguf}
TEMPLATE \"\"\"{{{{ .Prompt }}}}{suffix}\"\"\"
PARAMETER temperature 0
PARAMETER stop "{stop}"
"""


def model_card(build: Build, grid: Grid, example: str, others: str, gates: Sequence[Gate]) -> str:
    """README.md of the bundle; `others` is the sentence about other programs, `gates` what the build measured."""
    run, task, engines = build.run, build.task, [engine for engine in build.artifacts if engine != ONNX_LABELS]
    return CARD.format(
        license=run.base.get("license") or "other",
        base=run.base["spec"],
        tags=", ".join(engines),
        name=run.name,
        instruction=task.instruction,
        hub_task="text-generation" if task.is_written else "text-classification",
        kind=_answers(task),
        answers="answers" if task.is_written or task.choices else "labels",
        shown=_shown(task),
        teacher=run.teacher["name"],
        teacher_kind=run.teacher["kind"],
        license_note=run.teacher["license_note"] or "none given",
        weights_note=run.base["weights_note"],
        tokenizer_origin=run.base["tokenizer_origin"],
        train=run.rows["train"],
        dev=run.rows["dev"],
        test=run.rows["test"],
        reasons=" and reasons" if task.rationale_suffix or task.chain else "",
        parameters=grid.parameters,
        bits=grid.bits_per_weight,
        formats=" and ".join(map(str.upper, engines)) + (" hold" if len(engines) > 1 else " holds"),
        example=example.replace('"', "'").replace("\n", "\\n"),
        others=others,
        gates=gate_table(gates),
        hub=_hub(build),
    )


def _answers(task: Task) -> str:
    """The sentence about which answers there are."""
    if task.is_written:
        kind = {"number": "a number", "f1": "a few words, compared by their tokens"}.get(task.match, "a short text")
        return f"It writes its answer, {kind}{' after its reason' if task.chain else ''}."
    if task.choices is not None:
        return f"Each text brings 2 to {len(task.labels)} choices (field `{task.choices}`); the answer is a letter."
    kind = "Labels, any number of them for a text" if task.is_multilabel else "Labels"
    return f"{kind}: {', '.join(task.label_names)}."


def _shown(task: Task) -> str:
    """What of a prediction is the answer, where a label is not."""
    if task.is_written:
        return "`.label` is the answer as it is compared, `.text` all that was written.\n"
    return "`.label` is the letter, `.choice` the words of that choice.\n" if task.choices is not None else ""


def _hub(build: Build) -> str:
    """The sentences about transformers.js and Ollama."""
    onnx, gguf = build.path("onnx"), build.path("gguf")
    said = [] if onnx is None else [how_to_load(onnx)]
    if gguf is not None and not build.task.is_head:
        said.append("`gguf/Modelfile` is for Ollama and untested.")
    return " ".join(said)


def modelfile(task: Task, gguf: str, stop: str) -> str:
    """Ollama's Modelfile for a student that writes: `gguf` is its file, `stop` the token that ends an answer."""
    return MODELFILE.format(gguf=gguf, suffix=task.prompt_suffix, stop=stop)


def genai_config(grid: Grid, task: Task, onnx_path: str) -> dict[str, Any]:
    """genai_config.json for onnxruntime-genai 0.18, with the graph's names and greedy search."""
    shape = read_shape(grid.config)
    pad = grid.config.get("pad_token_id")
    return {
        "model": {
            "type": shape.family.genai,
            "bos_token_id": task.bos_token_id if task.bos_token_id is not None else grid.config.get("bos_token_id"),
            "eos_token_id": task.eos_token_id,
            "pad_token_id": pad if pad is not None else task.eos_token_id,
            "vocab_size": shape.vocabulary,
            "context_length": shape.context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": onnx_path,
                "head_size": shape.head_size,
                "hidden_size": shape.width,
                "num_attention_heads": shape.heads,
                "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "max_length": min(shape.context, 1024),
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
