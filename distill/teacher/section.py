"""The recipe's sections about the teacher: who is asked, how, and what it may cost."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from edgestill.distill.section import Section
from edgestill.distill.teacher.priming import Priming

# Fields of a request that the engine counts on.
OURS = ("model", "messages", "n", "stream", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs")
WHAT_PATH_IS = {
    "replay": ", a JSON-lines file of recorded answers",
    "gguf": ", a GGUF file or package:NAME",
    "huggingface": ", a model folder or a hub id",
}


class Price(Section):
    """USD per million tokens; `cached_input` is what prompt tokens cost that the endpoint had in its own cache."""

    input: Annotated[Decimal, Field(ge=0, strict=False)]
    output: Annotated[Decimal, Field(ge=0, strict=False)]
    cached_input: Annotated[Decimal, Field(ge=0, strict=False)] | None = None

    @model_validator(mode="after")
    def _cached_is_cheaper(self) -> "Price":
        if self.cached_input is not None and self.cached_input > self.input:
            raise ValueError(f"cached_input {self.cached_input} is above input {self.input}")
        return self


class TeacherSection(Section):
    """Who labels, and how it is asked.

    Kinds: openai (any OpenAI-compatible endpoint), replay (recorded answers), gguf (a file run by llama.cpp here),
    huggingface (a folder or hub id run by transformers here). `mode: batch` uses the endpoint's Batch API.
    """

    kind: Literal["openai", "replay", "gguf", "huggingface"]
    model: str | None = None
    base_url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    path: str | None = None
    license_note: str | None = None
    price_usd_per_mtok: Price | None = None
    mode: Literal["online", "batch"] = "online"
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 120
    max_attempts: Annotated[int, Field(ge=1)] = 8
    backoff_s: Annotated[float, Field(gt=0)] = 1
    batch_poll_s: Annotated[float, Field(gt=0)] = 30
    temperature: Annotated[float, Field(ge=0, le=2)] = 0
    max_tokens: Annotated[int, Field(ge=8)] = 512
    answer_format: Literal["auto", "json_schema", "json_object", "text"] = "auto"
    rationale_order: Literal["before", "after"] = "before"
    priming: Priming = "none"
    logprobs: bool = True
    votes: Annotated[int, Field(ge=0, le=64)] = 0
    vote_temperature: Annotated[float, Field(gt=0, le=2)] = 0.7
    self_agreement_rows: Annotated[int, Field(ge=0)] = 0
    smoke_rows: Annotated[int, Field(ge=0)] = 8
    redact: Annotated[tuple[str, ...], Field(strict=False)] = ()
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("redact")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                matches_nothing = re.compile(pattern).match("") is not None
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
            if matches_nothing:
                raise ValueError(f"{pattern!r} matches the empty text, so it would match everywhere")
        return patterns

    @field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, url: str | None) -> str | None:
        if url is not None and (not re.match(r"https?://[^/?#@\s]+(/[^?#\s]*)?$", url)):
            raise ValueError("wanted http(s)://HOST/PATH without user, password or query; a key goes into key_env")
        if url is not None:
            urlsplit(url).port  # noqa: B018 - raises ValueError where it is no number
        return url

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours_alone(cls, body: dict[str, Any]) -> dict[str, Any]:
        for key in OURS:
            if key in body:
                raise ValueError(f"{key} is not yours to set here; the teacher's own keys say what is sent")
        return body

    @model_validator(mode="after")
    def _complete(self) -> "TeacherSection":
        needed = {"openai": "model", "replay": "path", "gguf": "path", "huggingface": "path"}[self.kind]
        if getattr(self, needed) is None:
            raise ValueError(f"kind {self.kind} needs `{needed}`" + WHAT_PATH_IS.get(self.kind, ""))
        if self.mode == "batch" and self.kind != "openai":
            raise ValueError(f"mode batch is for kind openai, found kind {self.kind}")
        if self.priming != "none" and self.kind == "replay":
            raise ValueError(f"priming {self.priming} is for a teacher that is asked; recorded answers are as they are")
        if self.votes == 1:
            raise ValueError("votes: 1 is no vote; wanted 0 (none) or at least 2")
        return self


class BudgetSection(Section):
    """Hard caps on what the teacher may cost in this run; None is no cap. Recorded and cached answers cost nothing."""

    usd: Annotated[Decimal, Field(gt=0, strict=False)] | None = None
    tokens: Annotated[int, Field(gt=0)] | None = None
    requests: Annotated[int, Field(gt=0)] | None = None
