"""The OpenAI Batch API as a way of asking: upload, poll, harvest; resumed after a crash, partial results kept.

The first rows go online: they find out what the endpoint accepts and pass the smoke gate before a day is spent.
"""

import asyncio
import json
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from edgestill.distill.dataset import Row
from edgestill.distill.teacher.budget import Budget, Reservation, Tokens, bound_of, opened, used_tokens
from edgestill.distill.teacher.conversation import Needs, Resolved
from edgestill.distill.teacher.endpoint import Fault, OpenAIEndpoint, Reply, Unsupported, compact
from edgestill.distill.teacher.online import Online
from edgestill.distill.teacher.prompt import Request
from edgestill.distill.teacher.protocol import Told
from edgestill.distill.teacher.section import TeacherSection
from edgestill.distill.teacher.store import Store, Write, store_answer
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

# Below the API's limits of 50,000 requests and 200 MB a file.
MAX_REQUESTS = 10_000
MAX_BYTES = 90_000_000
MAX_ROUNDS = 3  # a request that failed in so many batches is given up
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
CALL_TIMEOUT_S = 600.0  # a file of answers is large
ENDED = ("completed", "expired", "cancelled", "failed")
TAG = "edgestill_batch"


class Batches:
    """Asks in rounds: what is missing goes into a batch; what comes back may make more missing."""

    def __init__(
        self,
        teacher: TeacherSection,
        endpoint: OpenAIEndpoint,
        store: Store,
        budget: Budget,
        resolve: Callable[[Row], Resolved | Needs],
    ) -> None:
        """All parts are made by the caller."""
        self._teacher, self._endpoint, self._store, self._budget = teacher, endpoint, store, budget
        self._resolve = resolve
        self._folder = store.spend_path.parent
        self._tries: Counter[str] = Counter()
        self._given_up: set[str] = set()

    async def run(self, rows: Iterable[Row], told: Told, online: Online) -> EdgestillError | None:
        """Ask about all rows, the first few through `online`; the reason why it stopped before the end, or None."""
        rows = list(rows)
        try:
            for batch_id, remote_id in list(
                self._store.spend("select id, remote_id from batches where state = 'open'")
            ):
                await self._harvest(str(batch_id), await self._submitted(str(batch_id), remote_id))
            stopped = await online.run(rows[: max(1, self._teacher.smoke_rows)], lambda done: None)
            if stopped is not None:
                return stopped
            while requests := self._missing(rows, told):
                batch_id = await self._prepare(requests)
                await self._harvest(batch_id, await self._submitted(batch_id, None))
        except EdgestillError as error:
            return error
        return None

    def _missing(self, rows: list[Row], told: Told) -> list[tuple[Request, str]]:
        """(request, split) of all that has no stored response, each key once."""
        missing: dict[str, tuple[Request, str]] = {}
        resolved = 0
        for row in rows:
            found = self._resolve(row)
            resolved += isinstance(found, Resolved)
            if isinstance(found, Needs):
                missing |= {r.key: (r, row.split) for r in found.requests if r.key not in self._given_up}
        told(resolved)
        return list(missing.values())

    async def _prepare(self, requests: list[tuple[Request, str]]) -> str:
        """Reserve as many requests as fit, durably, and write their file.

        Raises:
            BudgetReached: not even one fits.
        """
        batch_id, size = uuid.uuid4().hex, 0
        lines: list[str] = []
        writes: list[Write] = []
        for request, split in islice(requests, MAX_REQUESTS):
            bound = bound_of(request)
            line = json.dumps(
                {"custom_id": request.key, "method": "POST", "url": URL, "body": request.body}, ensure_ascii=False
            )
            size += len(line.encode()) + 1
            if (lines and size > MAX_BYTES) or not self._budget.fits(bound):
                break
            writes.append(opened(self._budget.take(bound), request, split, batch_id))
            lines.append(line)
        if not lines:
            await self._budget.reserve(*requests[0])  # nothing is in flight: it says which cap is reached
        manifest.write_text_atomic(self._file(batch_id), "\n".join(lines) + "\n")
        writes.append(("insert into batches values(?, null, 'open')", (batch_id,)))
        await self._store.write(writes)
        return batch_id

    async def _submitted(self, batch_id: str, remote_id: str | None) -> Any:
        """The remote batch: the known one, one that a crash left unrecorded, or a new one."""
        api = self._endpoint.client.with_options(timeout=CALL_TIMEOUT_S)
        if remote_id is not None:
            return await self._call(lambda: api.batches.retrieve(remote_id))
        remote = await self._find_remote(batch_id)
        if remote is None:
            path = self._file(batch_id)
            upload = await self._call(lambda: api.files.create(file=path, purpose="batch"))
            try:
                remote = await self._call(
                    lambda: api.batches.create(
                        input_file_id=upload.id, endpoint=URL, completion_window="24h", metadata={TAG: batch_id}
                    ),
                    attempts=1,  # a create that broke off may have worked: look before trying again
                )
            except EdgestillError:
                remote = await self._find_remote(batch_id)
                if remote is None:
                    raise
        await self._store.write([("update batches set remote_id = ? where id = ?", (remote.id, batch_id))])
        return remote

    async def _find_remote(self, batch_id: str) -> Any:
        async def find() -> Any:
            async for remote in self._endpoint.client.batches.list(limit=100):
                if (remote.metadata or {}).get(TAG) == batch_id:
                    return remote
            return None

        return await self._call(find)

    async def _harvest(self, batch_id: str, remote: Any) -> None:
        """Wait for the end and keep every answer there is, also of a batch that expired."""
        api = self._endpoint.client.with_options(timeout=CALL_TIMEOUT_S)
        while remote.status not in ENDED:
            await asyncio.sleep(self._teacher.batch_poll_s)
            remote = await self._call(lambda remote_id=remote.id: api.batches.retrieve(remote_id))  # type: ignore[misc]
        query = "select key, id, prompt_tokens, completion_tokens from attempts where batch = ? and state = 'open'"
        waiting = {
            str(key): Reservation(number, Tokens(prompt, 0, completion))
            for key, number, prompt, completion in self._store.spend(query, (batch_id,))
        }
        for file_id in (remote.output_file_id, remote.error_file_id):
            if file_id:
                content = await self._call(lambda file_id=file_id: api.files.content(file_id))  # type: ignore[misc]
                await self._keep_lines(content.content, waiting)
        done: list[Write] = []
        for key, line in waiting.items():  # no line came back: the API bills only what it answered
            done.append(self._budget.settle(line, "free", Tokens()))
            await self._failed(key, f"batch {remote.status} without an answer to it")
        await self._store.write([*done, ("update batches set state = 'done' where id = ?", (batch_id,))])
        self._file(batch_id).unlink(missing_ok=True)
        if remote.status == "failed":
            errors = getattr(remote.errors, "data", None) or []
            said = self._endpoint.scrub("; ".join(str(error.message) for error in errors) or "no reason given")
            raise EdgestillError(
                f"{self._endpoint.host} refused the batch: {said[:300]}", "mend it or use mode: online"
            )

    async def _keep_lines(self, content: bytes, waiting: dict[str, Reservation]) -> None:
        """Match lines by custom_id, whatever their order; each is taken out of `waiting` once."""
        for text in content.splitlines():
            try:
                record = json.loads(text)
                key, response = str(record["custom_id"]), record.get("response") or {}
            except (ValueError, LookupError, TypeError, AttributeError):
                continue  # a torn line: its request stays waiting
            line = waiting.pop(key, None)
            if line is None:
                continue  # said twice, or not ours
            status, body = response.get("status_code"), response.get("body")
            outcome = self._outcome(status, body if status is not None else {"error": record.get("error")})
            if isinstance(outcome, Reply):
                used = Tokens() if "error" in outcome.response else used_tokens(outcome.response.get("usage"))
                state, cost = ("worst", line.bound) if used is None else ("settled", used)
                stored = store_answer(key, outcome.response, f"{self._store.run_id}:{line.number}")
                await self._store.write([self._budget.settle(line, state, cost)], [stored])
            else:
                billed = outcome.billed
                await self._store.write(
                    [self._budget.settle(line, "worst" if billed else "free", line.bound if billed else Tokens())]
                )
                await self._failed(key, outcome.detail)

    def _outcome(self, status: int | None, body: Any) -> Reply | Fault:
        """Success is status 200 and a body that can be read; `error: null` alone says nothing."""
        if status == 200:
            try:
                return Reply(compact(body))
            except (LookupError, TypeError, AttributeError):
                return Fault("the body is no chat completion", billed=True)
        outcome = self._endpoint.judge(status or 500, body, {})
        return outcome if isinstance(outcome, Reply | Fault) else Fault(f"HTTP {status}: {outcome.message}", False)

    async def _failed(self, key: str, detail: str) -> None:
        self._tries[key] += 1
        if self._tries[key] >= MAX_ROUNDS:
            self._given_up.add(key)
            await self._store.write([("insert or replace into failures values(?, ?)", (key, detail))])

    async def _call(self, make: Callable[[], Awaitable[Any]], attempts: int | None = None) -> Any:
        """One call of the Batch API, tried again while the endpoint is only busy.

        Raises:
            EdgestillError: it failed for good.
        """
        most = attempts or self._teacher.max_attempts
        for attempt in range(most):
            outcome = await self._endpoint.guarded(make, CALL_TIMEOUT_S)
            if isinstance(outcome, Reply | Unsupported):
                raise EdgestillError(f"{self._endpoint.host} refused a call of its Batch API: {outcome}")
            if not isinstance(outcome, Fault):
                return outcome
            if attempt + 1 < most:
                wait_s = random.uniform(0, min(60.0, self._teacher.backoff_s * 2**attempt))
                await asyncio.sleep(outcome.retry_after_s or wait_s)
        raise EdgestillError(
            f"the Batch API at {self._endpoint.host} failed: {outcome.detail}", "the same command goes on from here"
        )

    def _file(self, batch_id: str) -> Path:
        return self._folder / f"batch-{batch_id}.jsonl"
