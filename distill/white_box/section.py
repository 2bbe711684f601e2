"""The recipe's section `train.white_box`: what of a local teacher's distributions is learnt. Loads nothing."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edgestill.distill.section import Section

# setting -> the divergences that have it
OF_DIVERGENCES = {"beta": ("jsd",), "alpha": ("skew_kl", "skew_reverse_kl")}


class FeaturesSection(Section):
    """Hidden states to be learnt: `weight` of the loss, and how many `pairs` of layers, None: one a student's layer."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    pairs: Annotated[int, Field(ge=1)] | None = None


class WhiteBoxSection(Section):
    """The loss becomes (1 - weight) * as without this section + weight * divergence from the teacher.

    `temperature` divides both models' logits and multiplies the divergence by its square. `beta` is that of jsd,
    `alpha` that of the skew divergences. `top_k` tokens of the teacher's are kept on disk, the rest as one; `all` asks
    it anew in every pass. With probability `on_policy_fraction` a row's completion is what the student itself writes,
    at `on_policy_temperature` and with at most `on_policy_tokens`. The teacher's prompt is the student's, primed as
    `teacher.priming` says, and with `context: instruction` behind the task's instruction and list of labels.
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"] = "forward_kl"
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1
    top_k: Annotated[int, Field(ge=1)] | Literal["all"] = 64
    on_policy_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    on_policy_temperature: Annotated[float, Field(gt=0)] = 1.0
    on_policy_tokens: Annotated[int, Field(ge=1)] = 64
    context: Literal["question", "instruction"] = "question"
    features: FeaturesSection | None = None

    @model_validator(mode="after")
    def _settings_of_this_divergence(self) -> "WhiteBoxSection":
        for name, divergences in OF_DIVERGENCES.items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and self.divergence not in divergences:
                raise ValueError(
                    f"{name} is {value}, but divergence is {self.divergence}; it is of {' and '.join(divergences)}"
                )
        return self

    @property
    def needs_teacher_in_training(self) -> bool:
        """Whether what is stored beforehand is not enough, so that the teacher stays in memory."""
        return self.top_k == "all" or self.on_policy_fraction > 0 or self.features is not None

    @property
    def is_stored(self) -> bool:
        """Whether the teacher's distributions over the recorded completions are computed once, beforehand."""
        return self.top_k != "all" and self.features is None

    def stored_as(self) -> dict[str, Any]:
        """What the stored distributions depend on, beside the teacher and what it is shown."""
        return self.model_dump(mode="json", include={"top_k", "temperature"})
