"""What a training loop remembers besides the train state."""

import dataclasses


@dataclasses.dataclass
class Progress:
    """The validations so far, for early stopping; saved with every checkpoint."""

    best: float | None = None
    best_step: int = 0
    validations_since_best: int = 0
    validated: int = 0  # step of the last validation

    def update(self, step: int, value: float) -> bool:
        """Takes in a validation; True if it is the best so far."""
        self.validated = step
        if self.best is None or value > self.best:
            self.best, self.best_step, self.validations_since_best = value, step, 0
            return True
        self.validations_since_best += 1
        return False

    def done(self, patience: int) -> bool:
        return 0 < patience <= self.validations_since_best
