"""A real bundle of a tiny encoder, of about a megabyte: what tests of machines measure."""

from pathlib import Path

from encoder_runs import LABELS, export_section, finish_run, shake, silent

from edgestill.distill.student.encoder import new_encoder
from edgestill.export.pack import run_export


def small_bundle(folder: Path, base: Path) -> Path:
    """Build it from a tiny encoder's folder; its only artifact is for onnxruntime."""
    import torch

    torch.manual_seed(0)
    encoder = new_encoder(base, len(LABELS))
    shake(encoder, 0.2)
    run, _ = finish_run(folder / "student", encoder)
    run_export(run, export_section("q4_0", "onnx"), folder / "bundle", silent)
    return folder / "bundle"
