"""PLE: progressive layered extraction (Tang et al., RecSys 2020); with one level CGC.

Every label has experts of its own beside the shared ones, and its gate reaches both; the gate of
the shared stream reaches all experts of the level, and the last level has no shared stream. Without
own experts all labels share them (MMoE's mixture); without shared ones there is a network for each
label, on one table.
"""

import dataclasses

from jaxrec.config import field
from jaxrec.errors import UserError
from jaxrec.models import multi_task
from jaxrec.problem import Level


@dataclasses.dataclass
class Config(multi_task.ExpertConfig):
    """PLE's hyper-parameters."""

    levels: int = field(2, least=1)  # 1 = CGC
    shared_experts: int = field(2, least=0)  # of a level
    own_experts: int = field(1, least=0)  # of a label, of a level

    def check(self) -> None:
        super().check()
        multi_task.check_levels(self.expert_widths, self.levels)
        if self.shared_experts + self.own_experts < 1:
            raise UserError('model.shared_experts and model.own_experts are both 0: no expert')

    def expert_levels(self, labels: tuple[str, ...]) -> tuple[Level, ...]:
        """Of the labels, and but for the last of the shared stream."""
        owners = multi_task.owners(self.shared_experts, labels, self.own_experts)
        hears = tuple(('', label) for label in labels)
        inner = Level((*labels, ''), owners, (*hears, ('', *labels)))
        return (inner,) * (self.levels - 1) + (Level(labels, owners, hears),)
