"""MMoE: multi-gate mixture of experts (Ma et al., KDD 2018); with one expert the shared bottom."""

import dataclasses

from jaxrec.config import field
from jaxrec.models import multi_task
from jaxrec.problem import Level


@dataclasses.dataclass
class Config(multi_task.ExpertConfig):
    """MMoE's hyper-parameters."""

    experts: int = field(6, least=1)  # 1 = shared bottom

    def expert_levels(self, labels: tuple[str, ...]) -> tuple[Level, ...]:
        """One, in which all hear all."""
        return (Level(labels, ('',) * self.experts, (('',),) * len(labels)),)
