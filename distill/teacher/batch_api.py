"""The calls of the OpenAI Batch API, tried again while the endpoint is only busy. Keeps no books."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from openai import NotFoundError

from edgestill.distill.teacher.endpoint import LONGEST_BACKOFF_S, Fault, OpenAIEndpoint, Reply, Unsupported
from edgestill.distill.teacher.section import TeacherSection
from edgestill.runtime.errors import EdgestillError

URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
CALL_TIMEOUT_S = 600.0  # a file of answers is large
TAG = "edgestill_batch"
ENDED = ("completed", "expired", "cancelled", "failed")


class Refused(EdgestillError):
    """The Batch API said no, so nothing came of the call."""


class BatchApi:
    """Makes remote batches, finds and watches them. A batch carries our id of it in its metadata."""

    def __init__(self, teacher: TeacherSection, endpoint: OpenAIEndpoint) -> None:
        """`endpoint` brings the client and judges its errors."""
        self._teacher, self._endpoint = teacher, endpoint
        self._client = endpoint.client.with_options(timeout=CALL_TIMEOUT_S)

    async def create(self, batch_id: str, path: Path) -> Any:
        """Upload the file and make the remote batch; one of this id that is there all the same is taken instead.

        Raises:
            Refused: nothing is out there.
        """
        try:
            file = await self._call(lambda: self._client.files.create(file=path, purpose="batch"))
        except EdgestillError as error:  # after however many tries: a file alone is no batch
            raise Refused(error.message, error.hint) from None
        return await self._call(
            lambda: self._client.batches.create(
                input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={TAG: batch_id}
            ),
            lambda: self.find(batch_id),  # a call that broke off may have made it
        )

    async def find(self, batch_id: str) -> Any:
        """The remote batch with our id in its metadata, None when there is none."""

        async def find() -> Any:
            async for remote in self._client.batches.list(limit=100):
                if (remote.metadata or {}).get(TAG) == batch_id:
                    return remote
            return None

        try:
            return await self._call(find)
        except Refused as error:  # that says nothing about the batch
            raise EdgestillError(error.message, error.hint) from None

    async def get(self, remote_id: str) -> Any:
        """The remote batch as it is now."""
        return await self._call(lambda: self._client.batches.retrieve(remote_id))

    async def ended(self, remote: Any) -> Any:
        """The remote batch when nothing more will happen to it."""
        while remote.status not in ENDED:
            await asyncio.sleep(self._teacher.batch_poll_s)
            remote = await self.get(remote.id)
        return remote

    async def content(self, file_id: str) -> bytes | None:
        """A file of answers; None when the endpoint has it no more."""

        async def fetch() -> bytes | None:
            try:
                return (await self._client.files.content(file_id)).content
            except NotFoundError:
                return None

        found: bytes | None = await self._call(fetch)
        return found

    async def _call(self, make: Callable[[], Awaitable[Any]], known: Callable[[], Awaitable[Any]] | None = None) -> Any:
        """What a call returns, or, after one whose outcome is unknown, what `known` finds of it.

        Raises:
            Refused: at the first try, so that nothing came of it.
            EdgestillError: it failed for good.
        """
        detail = ""
        for attempt in range(self._teacher.max_attempts):
            try:
                outcome = await self._endpoint.guarded(make, CALL_TIMEOUT_S)
                if isinstance(outcome, Reply | Unsupported):
                    said = outcome.message if isinstance(outcome, Unsupported) else outcome.response["error"]["message"]
                    raise EdgestillError(f"{self._endpoint.host} refused a call of its Batch API: {said}", "mend it")
            except EdgestillError as error:
                kind = EdgestillError if attempt else Refused
                raise kind(error.message, f"{error.hint}; mode: online needs no Batch API") from None
            if not isinstance(outcome, Fault):
                return outcome
            detail = outcome.detail
            wait_s = random.uniform(0, min(LONGEST_BACKOFF_S, self._teacher.backoff_s * 2**attempt))
            await asyncio.sleep(outcome.retry_after_s or wait_s)
            if known is not None and (found := await known()) is not None:
                return found
        raise EdgestillError(
            f"the Batch API at {self._endpoint.host} failed: {detail}", "the same command goes on from here"
        )
