"""AdaTT: adaptive task-to-task fusion (Li et al., KDD 2023).

At every level a label's gate reaches the experts of all labels and the shared ones, and its own
ones also reach it past the gate (the native residual): with a learned weight each, 1 if there is
one. Shared experts are a stream of their own, but for the last level.
"""

import dataclasses

from jaxrec.config import field
from jaxrec.models import multi_task
from jaxrec.problem import Level


@dataclasses.dataclass
class Config(multi_task.LevelsConfig):
    """AdaTT's hyper-parameters."""

    shared_experts: int = field(1, least=0)
    own_experts: int = field(1, least=1)
    native: bool = True  # the residual

    @property
    def own(self) -> str:
        return 'native' if self.native else ''

    def expert_levels(self, labels: tuple[str, ...]) -> tuple[Level, ...]:
        """Of the labels, and but for the last of the shared stream; all hear all."""
        owners = multi_task.owners(self.shared_experts, labels, self.own_experts)
        everyone = ('', *labels)
        inner = Level((*labels, ''), owners, (everyone,) * len(everyone))
        return (inner,) * (self.levels - 1) + (Level(labels, owners, (everyone,) * len(labels)),)
