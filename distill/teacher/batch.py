"""The OpenAI Batch API as a way of asking: upload, poll, harvest; resumed after a crash, partial results kept.

The first rows go online: they find out what the endpoint accepts and pass the smoke gate before a day is spent.
"""

import io
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.teacher.batch_api import URL, BatchApi, Refused
from edgestill.distill.teacher.budget import Budget, Reservation, Tokens, bound_of
from edgestill.distill.teacher.completion import compact
from edgestill.distill.teacher.conversation import Needs, Resolved
from edgestill.distill.teacher.endpoint import Fault, OpenAIEndpoint, Reply
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
WRITTEN_AT_ONCE = 500  # lines of a file of answers in one commit


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
        self._api = BatchApi(teacher, endpoint)
        self._folder = store.spend_path.parent
        self._tries: Counter[str] = Counter()
        self._given_up: set[str] = set()
        self._stopped: EdgestillError | None = None

    async def run(self, rows: Iterable[Row], told: Told, online: Online) -> EdgestillError | None:
        """Ask about all rows, the first few through `online`; the reason why it stopped before the end, or None."""
        rows = list(rows)
        try:
            await self._take_up()
            stopped = await online.run(rows[: max(1, self._teacher.smoke_rows)], lambda done: None)
            if stopped is not None:
                return stopped
            while requests := self._missing(rows, told):
                batch_id = await self._prepare(requests)
                await self._harvest(batch_id, await self._submit(batch_id))
        except EdgestillError as error:
            return error
        return None

    async def _take_up(self) -> None:
        """Finish the batches that an earlier process left open; remove the files that belong to none."""
        left = {str(b): r for b, r in self._store.spend("select id, remote_id from batches where state = 'open'")}
        for path in self._folder.glob(f"batch-{'[0-9a-f]' * 32}.jsonl*"):
            if path.name not in {self._file(batch_id).name for batch_id in left}:
                path.unlink()
        for batch_id, remote_id in left.items():
            remote = await self._known(batch_id, remote_id)
            if remote is None and self._file(batch_id).exists():
                remote = await self._submit(batch_id)
            if remote is None:
                await self._withdraw(batch_id)
            else:
                await self._harvest(batch_id, remote)

    def _missing(self, rows: list[Row], told: Told) -> list[tuple[Request, str]]:
        """(request, split) of all that has no stored response, each key once."""
        missing: dict[str, tuple[Request, str]] = {}
        resolved = 0
        for row in rows:
            if len(missing) >= MAX_REQUESTS:
                break
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
            writes.append(self._budget.opened(self._budget.take(bound), request, split, batch_id))
            lines.append(line)
        if not lines:
            await self._budget.room(requests[0][0])  # nothing is in flight: it says which cap is reached
        manifest.write_text_atomic(self._file(batch_id), "\n".join(lines) + "\n")
        writes.append(("insert into batches values(?, null, 'open')", (batch_id,)))
        await self._store.write(writes)
        return batch_id

    async def _submit(self, batch_id: str) -> Any:
        """Make the remote batch.

        Raises:
            Refused: nothing is out there, so nothing stays reserved.
        """
        try:
            remote = await self._api.create(batch_id, self._file(batch_id))
        except Refused:
            await self._withdraw(batch_id)
            raise
        return await self._recorded(batch_id, remote)

    async def _known(self, batch_id: str, remote_id: str | None) -> Any:
        """The remote batch as recorded, or one that a crash left unrecorded; None when there is none."""
        if remote_id is not None:
            return await self._api.get(remote_id)
        remote = await self._api.find(batch_id)
        return None if remote is None else await self._recorded(batch_id, remote)

    async def _recorded(self, batch_id: str, remote: Any) -> Any:
        await self._store.write([("update batches set remote_id = ? where id = ?", (remote.id, batch_id))])
        return remote

    async def _harvest(self, batch_id: str, remote: Any) -> None:
        """Wait for the end and keep every answer there is, also of a batch that expired.

        Raises:
            EdgestillError: it failed or was cancelled, or a line says that no other request would fare better.
        """
        remote = await self._api.ended(remote)
        waiting, unread = self._open_lines(batch_id), 0
        for file_id in (remote.output_file_id, remote.error_file_id):
            if file_id:
                content = await self._api.content(file_id)
                unread += len(waiting) if content is None else await self._keep_lines(content, waiting)
        if remote.status == "failed":
            await self._withdraw(batch_id)
        else:
            await self._close(batch_id, waiting, unread, f"batch {remote.status} without an answer to it")
        if remote.status in ("failed", "cancelled"):
            self._stopped = self._stopped or self._bad_end(remote)
        if self._stopped is not None:
            raise self._stopped

    def _bad_end(self, remote: Any) -> EdgestillError:
        if remote.status == "cancelled":
            return EdgestillError(
                f"{self._endpoint.host} says that the batch was cancelled", "the same command goes on"
            )
        errors = getattr(remote.errors, "data", None) or []
        said = " ".join("; ".join(str(error.message) for error in errors).split()) or "no reason given"
        return EdgestillError(
            f"{self._endpoint.host} refused the batch: {self._endpoint.scrub(said)[:300]}",
            "mend it or use mode: online",
        )

    def _open_lines(self, batch_id: str) -> dict[str, Reservation]:
        query = "select key, id, prompt_tokens, completion_tokens from attempts where batch = ? and state = 'open'"
        return {
            str(key): Reservation(number, Tokens(prompt, 0, completion))
            for key, number, prompt, completion in self._store.spend(query, (batch_id,))
        }

    async def _close(self, batch_id: str, waiting: dict[str, Reservation], unread: int, detail: str) -> None:
        """Settle what no line came back for: nothing was billed, except for `unread` lines that were lost."""
        done: list[Write] = []
        dearest = sorted(waiting.items(), key=lambda item: -item[1].bound.prompt - item[1].bound.completion)
        for number, (key, line) in enumerate(dearest):
            done += [self._budget.settle_fault(line, number < unread), *self._failed(key, detail)]
        await self._store.write([*done, ("update batches set state = 'done' where id = ?", (batch_id,))])
        self._file(batch_id).unlink(missing_ok=True)

    async def _withdraw(self, batch_id: str) -> None:
        """Take back what no model has seen: it counts neither as tokens nor as requests."""
        for line in self._open_lines(batch_id).values():
            self._budget.settle_fault(line, False)
            self._budget.requests -= 1
        drop = ("delete from attempts where batch = ? and state = 'open'", (batch_id,))
        await self._store.write([drop, ("update batches set state = 'done' where id = ?", (batch_id,))])
        self._file(batch_id).unlink(missing_ok=True)

    async def _keep_lines(self, content: bytes, waiting: dict[str, Reservation]) -> int:
        """Match lines by custom_id, whatever their order; each leaves `waiting` once. How many could not be read."""
        unread = 0
        spend: list[Write] = []
        answers: list[Write] = []
        for text in filter(bytes.strip, io.BytesIO(content)):
            try:
                record = json.loads(text)
                key, response = str(record["custom_id"]), record.get("response") or {}
                status, body = response.get("status_code"), response.get("body")
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                unread += 1  # a torn line: its request stays waiting
                continue
            line = waiting.pop(key, None)
            if line is None:
                continue  # said twice, or not ours
            outcome = self._outcome(status, body if status is not None else {"error": record.get("error")})
            if isinstance(outcome, Reply):
                spend.append(self._answered(line, outcome.response))
                answers.append(store_answer(key, outcome.response, f"{self._store.run_id}:{line.number}"))
            else:
                spend += [self._budget.settle_fault(line, outcome.billed), *self._failed(key, outcome.detail)]
            if len(spend) >= WRITTEN_AT_ONCE:
                await self._store.write(spend, answers)
                spend, answers = [], []
        await self._store.write(spend, answers)
        return unread

    def _outcome(self, status: int | None, body: Any) -> Reply | Fault:
        """Success is status 200 and a body that can be read; `error: null` alone says nothing."""
        try:
            if status == 200:
                return Reply(compact(body))
            outcome = self._endpoint.judge(status or 500, body, {})
        except (LookupError, TypeError, AttributeError):
            return Fault("the body is no chat completion", billed=True)
        except EdgestillError as error:  # the other lines count all the same
            self._stopped = self._stopped or error
            return Fault(error.message, billed=False)
        return outcome if isinstance(outcome, Reply | Fault) else Fault(f"HTTP {status}: {outcome.message}", False)

    def _answered(self, line: Reservation, response: dict[str, Any]) -> Write:
        settled, _, problem = self._budget.settle_response(line, response)
        self._stopped = self._stopped or problem
        return settled

    def _failed(self, key: str, detail: str) -> list[Write]:
        self._tries[key] += 1
        if self._tries[key] < MAX_ROUNDS:
            return []
        self._given_up.add(key)
        return [("insert or replace into failures values(?, ?)", (key, detail))]

    def _file(self, batch_id: str) -> Path:
        return self._folder / f"batch-{batch_id}.jsonl"
