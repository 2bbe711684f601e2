"""From a recipe to its teacher. The fingerprint is to be had without a key, a model or a lock."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgestill.distill.dataset import Row
from edgestill.distill.recipe import Recipe, resolve
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.live import LiveTeacher, live_fingerprint
from edgestill.distill.teacher.prompt import endpoint_host
from edgestill.distill.teacher.protocol import Teacher
from edgestill.distill.teacher.replay import ReplayTeacher, replay_fingerprint
from edgestill.runtime.errors import EdgestillError

OPENAI_URL = "https://api.openai.com/v1"


def teacher_fingerprint(recipe: Recipe, recipe_path: Path) -> str:
    """Hash that changes whenever the teacher's answers may.

    Raises:
        EdgestillError: a file that the teacher needs is missing.
    """
    if recipe.teacher.kind == "replay":
        return replay_fingerprint(Path(resolve(recipe_path, str(recipe.teacher.path))))
    return live_fingerprint(recipe, teacher_host(recipe, recipe_path))


def teacher_host(recipe: Recipe, recipe_path: Path) -> str:
    """What stands for the endpoint in the cache: host and port, or the hash of a local model's files."""
    if recipe.teacher.kind == "openai":
        return endpoint_host(_base_url(recipe))
    from edgestill.distill.teacher.local import model_hash

    return "local:" + model_hash(recipe, recipe_path)


def open_teacher(
    recipe: Recipe, recipe_path: Path, folder: Path, rows: Sequence[Row], form: Form | None = None
) -> Teacher:
    """The teacher that the recipe names, ready to be asked.

    Args:
        recipe: whose teacher section counts.
        recipe_path: paths in it are relative to this file.
        folder: of the annotations; a live teacher keeps its spend record there and locks it.
        rows: of the data set, of which some may be asked twice.
        form: of what an endpoint is asked; that of the recipe's task unless given.

    Raises:
        EdgestillError: no key, no file, a model that cannot be read, another process at work, or a form for a model in
            this process.
    """
    if recipe.teacher.kind == "replay":
        return ReplayTeacher(Path(resolve(recipe_path, str(recipe.teacher.path))), recipe)
    endpoint: Any
    if recipe.teacher.kind == "openai":
        from edgestill.distill.teacher.endpoint import OpenAIEndpoint

        endpoint = OpenAIEndpoint(recipe.teacher, _base_url(recipe), teacher_host(recipe, recipe_path))
    else:
        if form is not None:
            raise EdgestillError(
                f"teacher.kind {recipe.teacher.kind} answers the task's own question alone, and here another is asked",
                "write kind: openai",
            )
        from edgestill.distill.teacher.local import LocalEndpoint

        endpoint = LocalEndpoint(recipe, recipe_path, teacher_host(recipe, recipe_path))
    return LiveTeacher(recipe, endpoint, folder, rows, teacher_fingerprint(recipe, recipe_path), form)


def _base_url(recipe: Recipe) -> str:
    return recipe.teacher.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
