"""CL4SRec: contrastive learning for sequential recommendation (Xie et al. 2022), and its heirs.

SASRec under any of its losses plus lambda times a contrastive term (see `contrast`). What differs
from model to model are the views, so this file is also, by its settings,

  DuoRec (Qiu et al. 2022)    first='dropout', second='same_target'
  SimCSE (Gao et al. 2021)    first='dropout', second='dropout'
  ConSERT (Yan et al. 2021)   first='cutoff', second='cutoff', or other pairs of views
  CoSeRec (Liu et al. 2021)   substitute and insert > 0, short=12
  MoCo (He et al. 2020)       momentum and queue > 0, with any of these views

CL4SRec's paper leaves open, and here is chosen: two different operations per user (as in the DuoRec
authors' port), the user vector is the one after the last event, views are drawn of the model's
window without its last target, and [mask] is row 0 of the item table, which is never recommended.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.devices.mesh import replicated
from jaxrec.models import sasrec
from jaxrec.nn import embeddings
from jaxrec.objectives import contrast
from jaxrec.objectives.contrast import Contrast
from jaxrec.objectives.queue import enqueue, start_queue


@dataclasses.dataclass
class Config(sasrec.Config):
    """SASRec's hyper-parameters and those of the contrastive term."""

    contrast: Contrast = dataclasses.field(default_factory=Contrast)

    def make(self, num_items: int, *, rngs: nnx.Rngs) -> 'CL4SRec':
        """Builds the model for items 1..num_items; UserError for a value that cannot be."""
        self.check()
        self.contrast.check()
        return CL4SRec(self, num_items, rngs=rngs)


class CL4SRec(sasrec.SASRec):
    """SASRec with a contrastive term; with contrast.weight 0 it is SASRec, bit by bit."""

    def __init__(self, config: Config, num_items: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.contrasting = config.contrast.weight > 0
        kernel, shape = embeddings.INITS[config.init], (config.dim, config.dim)
        self.head = (
            nnx.List(nnx.Param(kernel(rngs.params(), shape, jnp.float32)) for _ in range(2))
            if config.contrast.head
            else None
        )

    def loss(self, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """SASRec's loss plus the contrastive term, and all named terms."""
        settings = self.config.contrast
        loss, terms = super().loss(batch, key)
        if not self.contrasting:
            return loss, terms
        users, (rows, keys) = len(batch['users']), self._views(batch, key)
        if settings.momentum:
            first, second = self._vectors(rows[0], keys[0], users), batch['queue.keys']
        else:
            first, second = contrast.both(
                lambda rows, key: self._vectors(rows, key, users),
                rows,
                keys,
                stack=jax.default_backend() != 'cpu',
            )
        value, more = contrast.term(settings, first, second, batch)
        return loss + settings.weight * value, {**terms, **more}

    def init_memory(self) -> dict:
        """See `state`: also the momentum encoder and the queue, if there are to be any."""
        memory, settings = super().init_memory(), self.config.contrast
        if self.contrasting and settings.momentum:
            momentum = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(self, nnx.Param)))
            memory |= {'momentum': momentum, **start_queue(settings.queue, self.config.dim)}
        return memory

    def remember(
        self, batch: dict, memory: dict, step: jax.Array, key: jax.Array
    ) -> tuple[dict, dict]:
        """See `state`: second views encoded by the momentum encoder, and put into the queue."""
        settings, new = self.config.contrast, {}
        old = {name: memory[name] for name in memory if name.startswith('queue')}
        if 'momentum' in memory:
            graphdef, params = nnx.split(self, nnx.Param)
            momentum = jax.tree.map(
                lambda a, b: settings.momentum * a + (1 - settings.momentum) * b,
                memory['momentum'],
                nnx.to_pure_dict(params),
            )
            model = nnx.merge(graphdef, momentum)
            (_, rows), (_, view_key) = self._views(batch, key)
            keys = model._vectors(rows, view_key, len(batch['users']))
            new = {'momentum': momentum, **enqueue(old, keys, batch)}
            batch = {**batch, **old, 'queue.keys': keys}
        rest = {name: value for name, value in memory.items() if name not in new}
        if rest:
            batch, rest = super().remember(batch, rest, step, key)
        return batch, {**rest, **new}

    def _views(self, batch, key):
        """Rows of both views and the keys to encode them with; a function of the step's key."""
        view_key, *keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        rows = contrast.views(self.config.contrast, batch, view_key, self.config.dim)
        return rows, jnp.stack(keys)

    def _vectors(self, rows, key, users):
        """[N, D] vectors of the N users of a view, through the head if there is one."""
        encode_key, table_key = jax.random.split(key)
        hidden = self.encode(rows, self.item_table(), encode_key, table_key=table_key)
        pool = self.config.contrast.pool
        x = contrast.user_vectors(hidden, rows, users, self.max_len - 1, pool)
        if self.head is not None:
            inner, outer = (replicated(kernel[...]) for kernel in self.head)
            x = jax.nn.relu(x @ inner) @ outer
        return x
