"""What one artifact did on one machine: every sample, and the gauges' readings beside them. Judges nothing.

Unknown is None, never 0. On an emulated machine everything that a clock or a memory gauge would say is None.
"""

from dataclasses import dataclass

VALID, INVALID = "valid", "invalid"


@dataclass(frozen=True)
class Request:
    """One answered test row.

    `round` 0 is the pass over all rows in their order, whose answers are judged; later rounds are for the clock alone
    and have `probabilities` None. `latency_ms` is None when the text is the one just answered, or the machine is
    emulated.
    """

    engine: str
    row_id: str
    round: int
    label: str
    probabilities: dict[str, float] | None
    latency_ms: float | None
    prompt_tokens: int
    student: str = "student"
    confidence: float | None = None
    tokens_written: int | None = None


@dataclass(frozen=True)
class Machine:
    """How the machine was reached and what was taken from it; `name` is what the user calls it.

    `transport` is local, ssh, constrained or emulated. `emulator` is such as "qemu-aarch64 7.2.19, cortex-a72";
    `profile` is such as "1 core, 512 MB".
    """

    name: str
    transport: str
    emulated: bool = False
    emulator: str | None = None
    profile: str | None = None
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class Loads:
    """Seconds from opening the files to a model that can answer, one sample a fresh process.

    Cold: the pages of the artifact were dropped from the cache as `cold_method` says; warm: just read by a process
    before it. `first_request_ms` is of the first warm process; `import_s` from the start of the interpreter to all
    libraries imported. What a cold load leaves on the disk the first request reads: `cold_first_request_ms`, by
    process.
    """

    import_s: float | None
    cold_s: tuple[float, ...]
    cold_method: str | None
    warm_s: tuple[float, ...]
    first_request_ms: float | None
    cold_first_request_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """Free text by a student that writes; empty for one that only labels.

    `ttft_ms` is from the string to its first token, tokenization included; `itl_ms` are the gaps between the tokens
    that follow, pooled over the requests. Rates are tokens over seconds of the whole run.
    """

    prompt_tokens: int | None
    ttft_ms: tuple[float, ...]
    itl_ms: tuple[float, ...]
    prefill_tok_s: float | None
    decode_tok_s: float | None


@dataclass(frozen=True)
class Memory:
    """Bytes of the process that answered the test rows (proc(5), cgroups); `method` names where they come from."""

    rss_after_import_bytes: int | None
    rss_after_load_bytes: int | None
    peak_rss_load_bytes: int | None
    peak_rss_bytes: int | None
    anonymous_after_bytes: int | None
    pss_after_bytes: int | None
    cgroup_peak_bytes: int | None
    method: str | None


@dataclass(frozen=True)
class Energy:
    """Joules over the timed rounds from a named source (such as "rapl: package-0, dram"); all None without one.

    Net is gross less `idle_w` over the same seconds.
    """

    source: str | None
    idle_w: float | None
    gross_j: float | None
    net_j: float | None
    net_j_per_request: float | None


@dataclass(frozen=True)
class Thermal:
    """Degrees Celsius of the hottest zone, the lowest clock as a share of the highest possible one, and drift.

    `drift` is the median latency of the last quarter of the timed requests over that of the first, minus 1, each
    latency taken as a share of its row's median, so that long rows do not look like slow ones.
    """

    start_c: float | None
    max_c: float | None
    end_c: float | None
    lowest_frequency: float | None
    throttled: bool | None
    drift: float | None


@dataclass(frozen=True)
class Noise:
    """What else the machine did meanwhile: the highest pressure stall and load seen, stolen time, lost processors."""

    psi_cpu_some_avg10: float | None
    steal_percent: float | None
    involuntary_switches: int | None
    load_1min: float | None


@dataclass(frozen=True)
class GoldenCheck:
    """`selfcheck` on the machine itself: the bundle's golden rows against the trained weights' answers."""

    rows: int
    labels_changed: int
    max_probability_difference: float


@dataclass(frozen=True)
class Measurement:
    """One artifact of the bundle of `student` on one machine.

    `validity` is valid, or invalid with `reasons`, each a sentence; `offline_rows_per_s` is all rows through
    `predict_many`. `requests` are all of them, in the order they were answered.
    """

    inputs_sha256: str
    engine: str
    path: str
    quantization: str
    bytes: int
    threads: int
    machine: Machine
    loads: Loads
    decoding: Decoding
    offline_rows_per_s: float | None
    memory: Memory
    energy: Energy
    thermal: Thermal
    noise: Noise
    golden: GoldenCheck
    validity: str
    reasons: tuple[str, ...]
    requests: tuple[Request, ...]
    student: str = "student"
