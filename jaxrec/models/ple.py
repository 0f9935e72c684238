"""PLE: progressive layered extraction (Tang et al., RecSys 2020); with one level CGC.

Every label has experts of its own beside the shared ones, and its gate reaches both; the gate of
the shared stream reaches all experts of the level, and the last level has no shared stream. Without
own experts all labels share them (MMoE's mixture); without shared ones there is a network for each
label, on one table.
"""

import dataclasses

from jaxrec.models import multi_task
from jaxrec.problem import Level


@dataclasses.dataclass
class Config(multi_task.LevelsConfig):
    """PLE's hyper-parameters; levels=1 is CGC."""

    def expert_levels(self, labels: tuple[str, ...]) -> tuple[Level, ...]:
        """Of the labels, and but for the last of the shared stream."""
        owners = multi_task.owners(self.shared_experts, labels, self.own_experts)
        hears = tuple(('', label) for label in labels)
        inner = Level((*labels, ''), owners, (*hears, ('', *labels)))
        return (inner,) * (self.levels - 1) + (Level(labels, owners, hears),)
