"""Where an arm stands in its run, beside its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Standing:
    """Whether an arm has ended, and how good it was at its best; a checkpoint holds it as JSON."""

    ended: str | None = None  # complete | early (validations without a rise) | diverged; None while it trains
    steps: int = 0  # that it took until it ended
    best_step: int | None = None  # steps it had taken when it was best
    valid_accuracy: float | None = None  # at its best
    waited: int = 0  # validations since

    def validated(self, accuracy: float, steps: int) -> bool:
        """Note the accuracy after so many steps; whether it is the best. Of equal ones the first is."""
        if self.valid_accuracy is not None and accuracy <= self.valid_accuracy:
            self.waited += 1
            return False
        self.valid_accuracy, self.best_step, self.waited = accuracy, steps, 0
        return True

    def __str__(self) -> str:
        """In words, for an arm that was just validated."""
        best = f"best {self.valid_accuracy:.2%} after step {self.best_step}" if self.waited else "best"
        return f"{best}, ends early" if self.ended == "early" else best
