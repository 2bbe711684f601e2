"""The wheel: only `edgestill/` inside, and its base install answers without torch."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_nothing_but_edgestill_lands_in_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"edgestill", f"{wheel.name.split('-py3')[0]}.dist-info"}


def test_the_wheel_carries_every_module_and_the_example(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    rooms = ("runtime", "distill", "export", "benchmarks")
    sources = {f"edgestill/{p.relative_to(ROOT).as_posix()}" for room in rooms for p in (ROOT / room).rglob("*.py")}
    data = {
        f"edgestill/distill/example/{name}" for name in ("recipe.yaml", "pool.jsonl", "test.jsonl", "teacher.jsonl")
    }
    drawn = [p for pattern in ("*.jinja", "*.schema.json") for p in (ROOT / "benchmarks").rglob(pattern)]
    templates = {f"edgestill/{p.relative_to(ROOT).as_posix()}" for p in drawn}
    assert sources | data | templates <= names


def test_the_base_install_answers_on_a_machine_without_torch(wheel: Path, bundle: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "device", with_pip=True)
    python = tmp_path / "device" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True, capture_output=True)
    script = f"""
import importlib.util, sys
for name in ("torch", "transformers", "peft", "datasets", "openai", "onnx", "sklearn", "llama_cpp"):
    assert importlib.util.find_spec(name) is None, name
from edgestill.runtime import load
student = load({str(bundle)!r})
answer = student.predict("remind me to water the plants at six")
assert abs(sum(answer.probabilities.values()) - 1) < 1e-6
print(answer.label, student.info()["engine"])
"""
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["reminder", "onnx"]
    cli = [str(tmp_path / "device" / "bin" / "edgestill")]
    subprocess.run([*cli, "example", "mine"], check=True, capture_output=True, cwd=tmp_path)
    built = subprocess.run(
        [*cli, "build", "mine/recipe.yaml"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert built.returncode == 1
    assert "pip install" in built.stderr
    assert "Traceback" not in built.stderr
    checked = subprocess.run([*cli, "verify", str(bundle)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "not checked: gguf" in checked.stdout
