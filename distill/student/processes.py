"""Training in several processes, as `accelerate launch` starts them: who am I, and sums over all. No model, no loop."""

import os
from collections.abc import Sequence

import torch


def process_index() -> int:
    """Number of this process among those that were launched together; 0 when it is alone."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


class Processes:
    """The processes of one training. Alone unless a launcher says otherwise; then they meet over gloo or nccl."""

    def __init__(self) -> None:
        """Joins the others where there are any; waits for them."""
        self.count, self.index = int(os.environ.get("WORLD_SIZE", "1")), process_index()
        if self.count > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=not torch.cuda.is_available())

    def wait(self) -> None:
        """Until all processes are here: what one of them has written, the others may read."""
        self.add(torch.zeros(1))

    def add(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(value)
        return value

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give every process the sum of all gradients, in one message; a missing one counts as 0."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = self.add(torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]))
        start = 0
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
