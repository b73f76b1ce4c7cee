"""Progressive distillation (Salimans and Ho, arXiv 2202.00512): halve the steps, round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from flashbulb.distill.objectives.base import Learner, Objective, World
from flashbulb.distill.objectives.halving import Rounds, halving_learner

if TYPE_CHECKING:
    from flashbulb.distill.loop import StepRng


class Progressive(Objective, frozen=True, tag="progressive"):
    """Progressive distillation: halve the steps round by round, each student teaching the next.

    Guidance is fixed and enters with the first round.
    """

    rounds: Rounds = Rounds()
    """Student steps of the first and last round."""
    guidance: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    """Classifier-free guidance of the first round's teacher; later ones have it in their weights."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner of all rounds."""

        def guide(first: bool, rng: StepRng) -> tuple[dict[str, Any], dict[str, Any]]:
            guided = {"guidance": self.guidance, "null_states": world.null_states}
            return guided if first else {}, {}

        return halving_learner(world, self.rounds, self.learning_rate, batch=batch, steps=steps, guide=guide)
