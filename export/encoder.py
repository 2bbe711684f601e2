"""An encoder's way to its files: trunk and head as they were trained, ONNX and GGUF from one grid."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgestill.distill.run import GRID_FOLDER, GRID_NAME
from edgestill.distill.student.encoder import WEIGHTS_NAME, Encoder, load_encoder, load_tensors
from edgestill.export import parity
from edgestill.export.bert import read_shape, storage_kind, tensor_names, to_grid, without_unread_positions
from edgestill.export.build import Compiler, Logits, Reader
from edgestill.export.gguf_encoder import read_gguf_encoder
from edgestill.export.grid import Grid, read_grid
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, GateFailed
from edgestill.runtime.task import load_tokenizer

MODEL_FOLDER = "model"
# What the model card says about the head: llama.cpp's own pooling "rank" is ours for cls and not for mean.
HEAD_IN_GGUF = {
    "cls": "Pooling `rank` gives the logits: the first token's state through `cls`, tanh and `cls.output`. "
    "The file's own setting, `none`, gives each token's state.",
    "mean": "The file's own setting, pooling `none`, gives each token's state. The logits are the mean of all states, "
    "not normalised, through `cls.output`, a float32 matrix with its bias in the same file. "
    "Pooling `rank` takes the first token instead of the mean and is wrong here.",
}


class EncoderCompiler(Compiler):
    """A student that labels: a BERT type with pooling and head."""

    _encoder: Encoder
    _vocabulary: Mapping[str, Any] = MappingProxyType({})  # what is known of llama.cpp's tokenizer; nothing before

    def read(self, probes: list[list[int]]) -> dict[str, Any]:  # noqa: ARG002 - nothing is merged that could be wrong
        """Load trunk and head."""
        self._encoder = load_encoder(self.build.student / MODEL_FOLDER)
        found, wanted = self._encoder.shape.labels, len(self.build.task.labels)
        if found != wanted:
            raise EdgestillError(f"the head has {found} outputs, the task {wanted} labels", "run train again")
        return {}

    def grid(self) -> Grid:
        """The grid that training left, or the tensors of the run's file rounded to nearest; all of them, or none."""
        build = self.build
        if build.run.grid is None:
            weights = load_file(build.student / MODEL_FOLDER / WEIGHTS_NAME)
            return without_unread_positions(to_grid(build.config, weights, build.quantization))
        names = tensor_names(read_shape(build.config), dense=self._encoder.shape.pooling == "cls")
        kinds = {name: storage_kind(name, build.quantization) for name in names}
        return without_unread_positions(read_grid(build.student / GRID_FOLDER / GRID_NAME, build.config, kinds))

    def write(self, grid: Grid, texts: list[str]) -> dict[str, Any] | None:
        """Write the files that the recipe asks for; the device's tokenizer file is the one that training read."""
        sha256, copied = (manifest.sha256_file(f / "tokenizer.json") for f in (self.build.student, self.build.folder))
        if sha256 != copied:
            raise GateFailed("the bundle's tokenizer.json is not the one that training read", "run export again")
        onnx_path, gguf_path = self.build.path("onnx"), self.build.path("gguf")
        if onnx_path is not None:
            self._write_onnx(grid, onnx_path)
        if gguf_path is not None:
            self._vocabulary = self._write_gguf(grid, gguf_path, texts)
        return {"tokenizer_sha256": sha256, "origin": self.build.run.base["tokenizer_origin"], **self._vocabulary}

    def _write_onnx(self, grid: Grid, path: Path) -> None:
        from edgestill.export.onnx_encoder import write_encoder

        path.parent.mkdir()
        write_encoder(grid, self._encoder.shape.pooling, path)

    def _write_gguf(self, grid: Grid, path: Path, texts: list[str]) -> dict[str, Any]:
        """The file; how often llama.cpp's own tokenizer, which the device does not use, gives other ids."""
        from edgestill.export.encoder_tokenizer import NO_VOCABULARY, add_tokenizer
        from edgestill.export.gguf_encoder import write_gguf_encoder
        from edgestill.export.tokenizer_writer import mismatches

        build, probes = self.build, parity.tokenizer_probes(texts)
        path.parent.mkdir()
        kind = write_gguf_encoder(
            grid,
            self._encoder.shape.pooling,
            list(build.task.label_names),
            build.run.name,
            lambda writer: add_tokenizer(writer, build.student, build.config, build.task, probes),
            path,
        )
        if kind == NO_VOCABULARY:
            return {"gguf_tokenizer": kind}
        wrong = mismatches(path, load_tokenizer(build.student), probes)
        return {"gguf_tokenizer": kind, "texts": len(probes), "mismatches": len(wrong)}

    def readers(self) -> Mapping[str, Reader]:
        """MatMulNBits' published layout; llama.cpp's own dequantization."""
        return {"onnx": parity.read_onnx_encoder, "gguf": read_gguf_encoder}

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
        """How to feed each file, and what comes out."""
        task, onnx_path, gguf_path = self.build.task, self.build.path("onnx"), self.build.path("gguf")
        rule = f" A label holds where its sigmoid is {task.threshold:g} or more." if task.is_multilabel else ""
        said = [
            f"token ids are those of `tokenizer.json` with {task.bos_token_id} before and {task.eos_token_id} after "
            f"the text; the {len(task.labels)} logits are in the order of the labels above.{rule}"
        ]
        if onnx_path is not None:
            said.append(
                f"onnxruntime opens `{self.build.relative(onnx_path)}`. In: `input_ids` and `attention_mask`, both "
                "int64 (batch, length), padded on the right with mask 0. Out: `logits` (batch, labels), float32."
            )
        if gguf_path is not None:
            opens = f"llama.cpp opens `{self.build.relative(gguf_path)}` as an embedding model."
            said.append(f"{opens} {HEAD_IN_GGUF[self._encoder.shape.pooling]} {self._vocabulary_in_gguf()}")
        return "\n\n".join(said) + "\n"

    def _vocabulary_in_gguf(self) -> str:
        facts = self._vocabulary
        if "mismatches" not in facts:
            return "llama.cpp has no tokenizer like this one, so the file takes token ids only."
        return (
            f"llama.cpp's own tokenizer gave other token ids for {facts['mismatches']:,} of {facts['texts']:,} texts, "
            "the task's own and random mixtures of scripts."
        )
