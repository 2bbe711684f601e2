"""An encoder's way to its file: trunk and head as they were trained, one ONNX graph from the grid.

There is no GGUF: llama.cpp drops or changes what stands on an encoder's trunk.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgestill.distill.student.encoder import WEIGHTS_NAME, Encoder, load_encoder, load_tensors
from edgestill.export import parity
from edgestill.export.bert import HEAD_DENSE, read_shape, storage_kind, tensor_names
from edgestill.export.build import Compiler, Logits, Reader
from edgestill.export.grid import Grid, quantize
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, GateFailed

MODEL_FOLDER = "model"


class EncoderCompiler(Compiler):
    """A student that labels: a BERT type with pooling and head."""

    _encoder: Encoder

    def read(self, probes: list[list[int]]) -> dict[str, Any]:  # noqa: ARG002 - nothing is merged that could be wrong
        """Load trunk and head."""
        self._encoder = load_encoder(self.build.student / MODEL_FOLDER)
        found, wanted = self._encoder.shape.labels, len(self.build.task.labels)
        if found != wanted:
            raise EdgestillError(f"the head has {found} outputs, the task {wanted} labels", "run train again")
        return {}

    def grid(self) -> Grid:
        """Round the tensors of the run's file; all of them, or none is written."""
        build = self.build
        weights = load_file(build.student / MODEL_FOLDER / WEIGHTS_NAME)
        names = list(tensor_names(read_shape(build.config), f"{HEAD_DENSE}.weight" in weights))
        if set(names) != set(weights):
            different = sorted(set(names) ^ set(weights))[:3]
            raise EdgestillError(
                f"the trained model lacks or adds {different}", "the base is not a plain BERT-type model"
            )
        tensors = {name: quantize(name, weights[name], storage_kind(name, build.quantization)) for name in names}
        return Grid(build.config, tensors)

    def write(self, grid: Grid, texts: list[str]) -> dict[str, Any] | None:  # noqa: ARG002 - no second tokenizer
        """Write the graph; the device reads the tokenizer file that training read, byte for byte."""
        from edgestill.export.onnx_encoder import write_encoder

        path = self.build.path("onnx")
        assert path is not None
        path.parent.mkdir()
        write_encoder(grid, self._encoder.shape.pooling, path)
        sha256, copied = (manifest.sha256_file(f / "tokenizer.json") for f in (self.build.student, self.build.folder))
        if sha256 != copied:
            raise GateFailed("the bundle's tokenizer.json is not the one that training read", "run export again")
        return {"tokenizer_sha256": sha256, "origin": self.build.run.base["tokenizer_origin"]}

    def readers(self) -> Mapping[str, Reader]:
        """MatMulNBits' published layout."""
        return {"onnx": parity.read_onnx_encoder}

    def logits(self, grid: Grid) -> Logits:
        """Outputs of the head, (L,)."""
        values = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in grid.tensors.items()}
        load_tensors(self._encoder, values, "the grid")

        def outputs(ids: list[int]) -> NDArray[np.float32]:
            with torch.inference_mode():
                return np.asarray(self._encoder.logits(ids))

        return outputs

    def context_tokens(self) -> int:
        """The positions that the table has rows for, special tokens included."""
        return read_shape(self.build.config).context

    def for_other_programs(self) -> str:
        """How to feed the graph."""
        task, path = self.build.task, self.build.path("onnx")
        assert path is not None
        rule = f" A label holds where its sigmoid is {task.threshold:g} or more." if task.is_multilabel else ""
        return (
            f"onnxruntime opens `{self.build.relative(path)}`. In: `input_ids` and `attention_mask`,\n"
            "both int64 (batch, length), padded on the right with mask 0. The ids are those of `tokenizer.json` with\n"
            f"{task.bos_token_id} before and {task.eos_token_id} after the text. Out: `logits` (batch, "
            f"{len(task.labels)}), float32, in the order of the labels above.{rule}"
        )
