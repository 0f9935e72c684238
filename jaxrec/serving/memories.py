"""Memories: MARM served, with what its layers made of every row a user was shown.

A row costs layers * reach * dim; nothing of the past is computed twice. What was kept when a model
was older stays as it was: begin anew with each model.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from jaxrec.devices.mesh import replicated
from jaxrec.errors import UserError
from jaxrec.serving.scorer import BATCH_ROWS, Scorer
from jaxrec.training.restore import Trained


@dataclasses.dataclass
class _Shown:
    """A row that was shown: its item, float32 [L, D] of the layers, labels and mask [T].

    groups is the value of the field that a search wants alike, 0 without one.
    """

    item: Any
    groups: int
    kept: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


class Memories(Scorer):
    """Probabilities of candidates after what their users were shown; at first nobody was.

    `score` changes nothing. `shown` adds rows to their users' memories, `came` says what came of
    them. One thread at a time may change memories.

    Args:
      trained: a model with layers over a user's past, of the click task.
      batch_rows: see `Scorer`.
    """

    sees_past: ClassVar[bool] = True

    def __init__(self, trained: Trained, *, batch_rows: int = BATCH_ROWS):
        super().__init__(trained, batch_rows=batch_rows)
        config = trained.experiment.model
        self._memory, self._shape = config.reach, (config.layers, config.dim)
        self._same = config.same
        self._users = {}

        def kept(params, carried, batch):
            del carried
            return replicated(nnx.merge(trained.graphdef, params).kept(batch)[:, :-1])

        self._kept = jax.jit(kept)

    def shown(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows happened, in this order; of a user the latest `model.reach` are kept.

        Args:
          rows: see `Scorer.score`; each needs a user.

        Raises:
          UserError: as `Scorer.score`, or a row without a user.
        """
        if any(row.get('user') is None for row in rows):
            raise UserError('a row without a user cannot be kept')
        turns, number = [], collections.Counter()  # the first row of every user, the second, ..
        for row in rows:
            turn = number[row['user']]
            turns += [[]] if turn == len(turns) else []
            turns[turn].append(row)
            number[row['user']] += 1
        most = self._sizes[-1]
        for turn in turns:
            for part in (turn[n : n + most] for n in range(0, len(turn), most)):
                given = self.given(part)
                found = self._run(self._kept, given, len(part))
                groups = given['features'].get(self._same, np.zeros(len(part), np.int32))
                for row, group, layers in zip(part, groups, found, strict=True):
                    nothing = np.zeros((2, len(self.labels)), np.float32)
                    latest = collections.deque(maxlen=self._memory)
                    latest = self._users.setdefault(row['user'], latest)
                    latest.append(_Shown(row['item'], group, layers, *nothing))

    def came(self, user: Any, item: Any, labels: Mapping[str, float]) -> None:
        """What came of the user's latest row of the item; a label not named stays as it was.

        Raises:
          UserError: a label that there is not, or no such row is kept.
        """
        there = (one for one in reversed(self._users.get(user, ())) if one.item == item)
        shown = next(there, None)
        if shown is None:
            raise UserError(f'nothing is kept of user {user!r} and item {item!r}')
        for label, value in labels.items():
            if label not in self.labels:
                raise UserError(f'no label {label!r}; there are {", ".join(self.labels)}')
            at = self.labels.index(label)
            shown.labels[at], shown.mask[at] = value, 1

    def given(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As of `Scorer`, with the memories of the rows' users."""
        found = super().given(rows)
        size, labels = (len(rows), self._memory), len(self.labels)
        memory = {
            'kept': np.zeros((*size, *self._shape), np.float32),
            'labels': np.zeros((*size, labels), np.float32),
            'mask': np.zeros((*size, labels), np.float32),
            'there': np.zeros(size, bool),
        }
        if self._same:
            memory['groups'] = np.zeros(size, np.int32)
        for number, row in enumerate(rows):
            for place, one in enumerate(self._users.get(row.get('user'), ())):
                memory['there'][number, place] = True
                for name in memory.keys() - {'there'}:
                    memory[name][number, place] = getattr(one, name)
        return {**found, 'memory': memory}
