"""A decoder's way to its files: adapter folded into the base, ONNX and GGUF from one grid."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgestill.distill.run import GRID_FOLDER, GRID_NAME
from edgestill.distill.student.merge import merge
from edgestill.distill.torch_session import TorchSession
from edgestill.export import cards, parity
from edgestill.export.architecture import exact_norms, read_shape, storage_kind, tensor_names
from edgestill.export.build import Compiler, Logits, Reader
from edgestill.export.grid import Grid, read_grid
from edgestill.export.weights import empty_model, load_grid, to_grid
from edgestill.runtime import manifest
from edgestill.runtime.bundle import ONNX_LABELS


class DecoderCompiler(Compiler):
    """A student that writes: a decoder with LoRA."""

    _model: Any = None

    def read(self, probes: list[list[int]]) -> dict[str, Any]:
        """Merge the adapter into its base; where training left a grid, only say what merging did there."""
        run, student = self.build.run, self.build.student
        if run.grid is not None:
            return {"merge_max_logit_difference": run.grid["merge_max_logit_difference"]}
        base = (Path(run.base["folder"]), run.base["weights_sha256"])
        self._model, difference = merge(*base, student / "adapter", probes)
        return {"merge_max_logit_difference": difference}

    def grid(self) -> Grid:
        """The grid that training left, or the merged model rounded to nearest."""
        build = self.build
        if build.run.grid is None:
            return exact_norms(to_grid(self._model, build.config, build.quantization))
        names = tensor_names(read_shape(build.config))
        kinds = {name: storage_kind(name, build.quantization) for name in names}
        return exact_norms(read_grid(build.student / GRID_FOLDER / GRID_NAME, build.config, kinds))

    def write(self, grid: Grid, texts: list[str]) -> dict[str, Any] | None:
        """Write the files the recipe asks for; what the tokenizer gate measured, None without GGUF."""
        onnx_path, gguf_path = self.build.path("onnx"), self.build.path("gguf")
        if onnx_path is not None:
            self._write_onnx(grid, onnx_path)
        labels_path = self.build.path(ONNX_LABELS)
        if labels_path is not None:
            self._write_labels(grid, labels_path)
        return None if gguf_path is None else self._write_gguf(grid, gguf_path, texts)

    def _write_onnx(self, grid: Grid, path: Path) -> None:
        from edgestill.export.onnx_writer import write_onnx

        path.parent.mkdir()
        write_onnx(grid, path)
        config = cards.genai_config(grid, self.build.task, self.build.relative(path))
        manifest.write_json(self.build.folder / "genai_config.json", config)

    def _write_labels(self, grid: Grid, path: Path) -> None:
        from edgestill.export.onnx_labels import write_labels

        task = self.build.task
        longest_tokens = task.max_text_tokens + task.room_tokens
        write_labels(grid, [label.token_id for label in task.labels], longest_tokens, path)

    def _write_gguf(self, grid: Grid, path: Path, texts: list[str]) -> dict[str, Any]:
        from edgestill.export.gguf_writer import write_gguf
        from edgestill.export.tokenizer_writer import find_pre, read_tokenizer

        build, probes = self.build, parity.tokenizer_probes(texts)
        pre = find_pre(build.student, build.config, build.task, probes)
        path.parent.mkdir()
        tokenizer = read_tokenizer(build.student, build.config, build.task, pre)
        write_gguf(grid, tokenizer, build.run.name, build.quantization, path)
        return {"pre": pre, "origin": build.run.base["tokenizer_origin"]}

    def readers(self) -> Mapping[str, Reader]:
        """MatMulNBits' published layout; llama.cpp's own dequantization."""
        return {"onnx": parity.read_onnx, "gguf": parity.read_gguf}

    def logits(self, grid: Grid) -> Logits:
        """Logits of the token that follows, (V,); what two calls share at their beginning is computed once."""
        model = load_grid(self._model or empty_model(self.build.student), grid)
        return TorchSession(model, self.context_tokens()).logits

    def context_tokens(self) -> int:
        """The rope tables' length."""
        return read_shape(self.build.config).context

    def for_other_programs(self) -> str:
        """Which programs open what, and how the prompt ends."""
        suffix = self.build.task.prompt_suffix.encode("unicode_escape").decode()
        programs = {"onnx": "onnxruntime-genai loads this folder", "gguf": "llama.cpp loads `gguf/`"}
        said = "; ".join(said for engine, said in programs.items() if engine in self.build.artifacts)
        return f"{said}. The prompt is the text followed by\n`{suffix}`; the answer is the text that follows."
