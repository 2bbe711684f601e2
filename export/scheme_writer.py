"""One model in the schemes that are asked for: its grids, its files, and the check that a file holds its grid.

Makes no folder and no manifest; `schemes` does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.export import bert, kquants, parity
from edgestill.export.architecture import exact_norms, read_shape, storage_kind, tensor_names
from edgestill.export.contents import Contents, gguf_contents, onnx_contents
from edgestill.export.gguf_encoder import read_gguf_encoder
from edgestill.export.grid import Floats, Grid, Kind, quantize
from edgestill.export.model_folder import Model
from edgestill.export.plan import MAX_FILE_BYTES
from edgestill.export.tokenizer_writer import GgufTokenizer
from edgestill.runtime.errors import GateFailed, UsageError
from edgestill.runtime.task import load_tokenizer


@dataclass(frozen=True)
class Scheme:
    """One way to write a model: `path` in its folder, and the grid it is written from.

    `llama` is the format that llama.cpp's quantizer makes of a float32 file, None where the grid is written as it is.
    """

    name: str
    path: str
    kind: Kind
    llama: str | None = None

    @property
    def engine(self) -> str:
        """Onnx or gguf."""
        return self.name.partition("-")[0]


class SchemeWriter:
    """Writes one model's files below `folder`, which holds config.json and the tokenizer's files already."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.vocabulary: str | None = None  # llama.cpp's name for it, once a GGUF file is written
        self._tokenizer: GgufTokenizer | None = None

    def grid(self, kind: Kind) -> Grid:
        """The weights, read tensor by tensor and rounded to nearest; f32 rounds nothing."""
        config, weights = self.model.config, self.model.weights
        if self.model.is_encoder:
            return bert.without_unread_positions(bert.to_grid(config, weights, kind))
        kinds = {name: kind if kind == "f32" else storage_kind(name, kind) for name in tensor_names(read_shape(config))}
        return exact_norms(Grid(config, {name: quantize(name, weights[name], kinds[name]) for name in kinds}))

    def write(self, scheme: Scheme, grid: Grid) -> Contents:
        """One file of the grid's own numbers, read back and compared with it.

        Raises:
            UsageError: an ONNX file beyond 2 GB.
            GateFailed: the file holds other numbers.
        """
        path = self.folder / scheme.path
        if scheme.engine == "onnx":
            self._write_onnx(scheme.name, grid, path)
        else:
            self._write_gguf(grid, "f16" if scheme.kind == "f32" else scheme.kind, path)
        self._check_numbers(scheme, grid, path)
        return gguf_contents(path) if scheme.engine == "gguf" else onnx_contents(path, grid.tensors)

    def write_llama(
        self, schemes: list[Scheme], grid: Grid, means: Mapping[str, Floats]
    ) -> Iterator[tuple[Scheme, Contents]]:
        """Files of llama.cpp's formats, from one float32 file that is gone afterwards; `means` weight the rounding."""
        source = self.folder / "gguf" / "source.gguf"
        self._write_gguf(grid, "f32", source)
        try:
            for scheme in schemes:
                assert scheme.llama is not None
                kquants.quantize_file(source, self.folder / scheme.path, scheme.llama, means)
                yield scheme, gguf_contents(self.folder / scheme.path)
        finally:
            source.unlink()

    def _write_onnx(self, name: str, grid: Grid, path: Path) -> None:
        size_bytes = grid.bits_per_weight * grid.parameters / 8
        if size_bytes > MAX_FILE_BYTES:
            raise UsageError(f"{name} would take {size_bytes / 1e9:.1f} GB, wanted under 2", "leave it out")
        if self.model.is_encoder:
            from edgestill.export.onnx_encoder import write_encoder

            write_encoder(grid, "cls", path)
        else:
            from edgestill.export.onnx_writer import write_onnx

            write_onnx(grid, path)

    def _write_gguf(self, grid: Grid, quantization: str, path: Path) -> None:
        if self.model.is_encoder:
            self._write_gguf_encoder(grid, path)
            return
        from edgestill.export.gguf_writer import write_gguf
        from edgestill.export.tokenizer_writer import find_pre, read_tokenizer

        if self._tokenizer is None:
            config, task = self.model.config, self.model.task
            self.vocabulary = find_pre(self.folder, config, task, parity.tokenizer_probes([]))
            self._tokenizer = read_tokenizer(self.folder, config, task, self.vocabulary)
        write_gguf(grid, self._tokenizer, self.model.name, quantization, path)

    def _write_gguf_encoder(self, grid: Grid, path: Path) -> None:
        from edgestill.export.encoder_tokenizer import add_tokenizer
        from edgestill.export.gguf_encoder import write_gguf_encoder

        model, probes = self.model, parity.tokenizer_probes([])

        def add(writer: Any) -> str:
            return add_tokenizer(writer, self.folder, model.config, model.task, probes)

        self.vocabulary = write_gguf_encoder(grid, "cls", model.task.label_names, model.name, add, path)

    def _check_numbers(self, scheme: Scheme, grid: Grid, path: Path) -> None:
        """Tensor by tensor, so that only one is in memory as float32."""
        seen = set()
        for name, values in self._read_back(scheme, grid, path):
            if name not in grid.tensors:
                raise GateFailed(f"{scheme.path} holds {name}, which the grid does not", "report this as a bug")
            wanted = grid.tensors[name].dequantize()
            if scheme.name == "gguf-f16" and wanted.ndim == 2:
                wanted = wanted.astype(np.float16).astype(np.float32)
            if not np.array_equal(wanted, values):
                raise GateFailed(f"{scheme.path} holds other numbers than it should in {name}", "report this as a bug")
            seen.add(name)
        missing = sorted(set(grid.tensors) - seen)
        if missing:
            raise GateFailed(f"{scheme.path} lacks {missing[:3]}", "report this as a bug")

    def _read_back(self, scheme: Scheme, grid: Grid, path: Path) -> Iterator[tuple[str, Floats]]:
        """(Hugging Face name, float32 values) of every tensor, by other code than wrote it."""
        if self.model.is_encoder:
            yield from (parity.read_onnx_encoder if scheme.engine == "onnx" else read_gguf_encoder)(path, grid.config)
        else:
            yield from (parity.read_onnx if scheme.engine == "onnx" else parity.read_gguf)(path, grid.config)

    def importance(
        self, grid: Grid, texts: list[str], tell: Callable[[int, int], None]
    ) -> tuple[dict[str, Floats], int]:
        """Mean squares by GGUF's tensor name, (K,) each, of the model in float32 over `texts`; and tokens read."""
        from edgestill.export.imatrix import measure, pieces
        from edgestill.export.weights import empty_model, load_grid

        tokenizer, first = load_tokenizer(self.folder), self.model.task.bos_token_id
        ids = pieces(
            lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
            [] if first is None else [first],
            texts,
        )
        found = measure(load_grid(empty_model(self.folder), grid), self.model.config, ids, tell)
        return found.means, found.tokens
