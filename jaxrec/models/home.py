"""HoME: hierarchy of multi-gate experts (Wang et al., KDD 2025, arXiv 2408.05430).

Labels belong to groups (watching, interaction). With v the input, z what level 1 hears:

    level 1   z_shared hears all experts, z_g of a group g the shared ones and its own
    level 2   label k of group g hears the shared experts (of z_shared), the group's and its own
              (of z_g); its gate sees z_g and z_shared side by side

Experts are Swish(BatchNorm(MLP(x))). Where `feature_gate` is set, the experts of each owner see
their input through a gate of their own (`experts.FeatureGate`), at both levels; where `self_gate`
is set, groups and labels also hear their own experts past the gate; without `mask` every gate
reaches all experts of its level. The loss is the plain sum over labels.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import problem
from jaxrec.config import field
from jaxrec.errors import UserError
from jaxrec.models import multi_task
from jaxrec.nn import experts
from jaxrec.nn.dropout import Key, split_key
from jaxrec.problem import Level


@dataclasses.dataclass
class Group:
    """Labels that belong together."""

    name: str
    labels: tuple[str, ...]


@dataclasses.dataclass
class Config(multi_task.ExpertConfig):
    """HoME's hyper-parameters; experts of both levels have all layers of `expert_widths`."""

    expert: str = field('bn_swish', choices=experts.KINDS)
    groups: tuple[Group, ...] = ()  # of all labels
    shared_experts: int = field(2, least=1)  # of a level
    group_experts: int = field(1, least=1)  # of a group, of a level
    own_experts: int = field(1, least=1)  # of a label, at level 2
    mask: bool = True
    feature_gate: bool = True
    self_gate: bool = True
    gate_parts: int = field(2, least=1)  # of a feature gate's low-rank masks

    def check(self) -> None:
        super().check()
        names = [group.name for group in self.groups]
        labels = [label for group in self.groups for label in group.labels]
        if not labels or len({'', *names, *labels}) < 1 + len(names) + len(labels):
            raise UserError(
                'model.groups must name every label once, e.g. (home.Group("watch", ("click", '
                '"long_view")),), and groups otherwise than labels'
            )

    def inputs(self) -> problem.Inputs:
        labels = tuple(label for group in self.groups for label in group.labels)
        return dataclasses.replace(super().inputs(), labels=labels)

    def expert_levels(self, labels: tuple[str, ...]) -> tuple[Level, ...]:
        """Of the groups and the shared stream, then of the labels."""
        names = tuple(group.name for group in self.groups)
        group_of = {label: group.name for group in self.groups for label in group.labels}
        owners = multi_task.owners(self.shared_experts, names, self.group_experts)
        own = multi_task.owners(0, labels, self.own_experts)
        everyone, all_of_two = ('', *names), ('', *names, *labels)
        first = tuple(('', name) if self.mask else everyone for name in names)
        second = tuple(
            ('', group_of[label], label) if self.mask else all_of_two for label in labels
        )
        return (
            Level((*names, ''), owners, (*first, everyone)),
            Level(labels, owners + own, second),
        )

    def head(self, width: int, labels: tuple[str, ...], *, rngs: nnx.Rngs) -> 'Hierarchy':
        """See the module."""
        return Hierarchy(self, width, labels, rngs=rngs)


class Hierarchy(nnx.Module):
    """The two levels of HoME.

    Args:
      config: HoME's.
      width: of the input.
      labels: of the towers.
      rngs: of the parameters.
    """

    def __init__(self, config: Config, width: int, labels: tuple[str, ...], *, rngs: nnx.Rngs):
        first, second = config.expert_levels(labels)
        group_of = {label: group.name for group in config.groups for label in group.labels}
        self.stream_of = {'': '', **{n: n for n in first.listeners}, **group_of}
        widths = config.expert_widths
        self.width = inner = widths[-1]
        settings = {
            'kind': config.expert,
            'own': 'self' if config.self_gate else '',
            'dropout': config.dropout,
            'rngs': rngs,
        }
        self.first = experts.Mixture(first, (width, *widths), **settings)
        self.second = experts.Mixture(second, (inner, *widths), selector=2 * inner, **settings)
        gate = lambda level, width: (  # noqa: E731
            experts.FeatureGate(len(_distinct(level.owners)), width, config.gate_parts, rngs=rngs)
            if config.feature_gate
            else None
        )
        self.first_gate, self.second_gate = gate(first, width), gate(second, inner)

    def __call__(
        self, x: jax.Array, key: Key = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, list[experts.Mixed]]:
        """[B, T, D] of x [B, I], and what the two levels were like."""
        keys = split_key(key, 2)
        one, two = self.first.level, self.second.level
        gated = x
        if self.first_gate is not None:
            gated = experts.streams(self.first_gate(x), _distinct(one.owners), one.owners)
        first = self.first(gated, x, keys[0], real)
        owners = _distinct(two.owners)
        seen = experts.streams(first.out, one.listeners, [self.stream_of[o] for o in owners])
        if self.second_gate is not None:
            seen = self.second_gate(seen)
        groups = experts.streams(
            first.out, one.listeners, [self.stream_of[n] for n in two.listeners]
        )
        shared = experts.streams(first.out, one.listeners, [''] * len(two.listeners))
        selector = jnp.concatenate([groups, shared], axis=2)
        seen = experts.streams(seen, owners, two.owners)
        second = self.second(seen, selector, keys[1], real)
        return second.out, [first, second]


def _distinct(names):
    return tuple(dict.fromkeys(names))
