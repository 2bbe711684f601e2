"""A torch model behind the runtime's Session, so that its answers are decoded exactly as on the device."""

from typing import Any

import numpy as np
import torch

from edgestill.runtime.session import Logits, Session


class TorchSession(Session):
    """A transformers causal language model with a key/value cache that is cut back to the shared prefix."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        """`model` is used in evaluation mode, as it is."""
        super().__init__(max_tokens)
        self._model = model.eval()
        self._cache: Any = None

    @torch.inference_mode()
    def _continue(self, kept: int, ids: list[int]) -> Logits:
        from transformers import DynamicCache

        if kept == 0 or self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
        elif (surplus := self._cache.get_seq_length() - kept) > 0:
            self._cache.crop(-surplus)
        output = self._model(
            input_ids=torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        return np.asarray(output.logits[0, -1].float().numpy(), np.float32)
