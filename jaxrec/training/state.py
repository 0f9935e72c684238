"""The train state: a plain dict of step, params, opt_state and, where needed, ema and memory.

A model may remember more than parameters, a queue or a frequency estimate: `init_memory()` gives
its first value, a dict of arrays, and `remember(batch, memory, step, key)`, before the gradient of
each step, the next one and what the loss needs of it, added to the batch; key is the loss's.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec.devices.mesh import concrete, split_rows
from jaxrec.training import sparse
from jaxrec.training.optim import Optimizer, average


def split_model(model: Any, num_items: int) -> tuple[Any, dict]:
    """(graphdef, parameters as placed shapes) of a model's Config, without computing anything."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: _build(model, num_items, jax.random.key(0))))
    params = jax.eval_shape(lambda: _params(model, num_items, jax.random.key(0)))
    return graphdef, concrete(params)


def init_state(model: Any, num_items: int, optimizer: Optimizer, seed: int) -> dict:
    """A new train state on the current mesh; a function of `seed` alone, whatever the mesh."""

    graphdef, _ = split_model(model, num_items)

    init = jax.jit(lambda key: new_state(graphdef, model, num_items, optimizer, key))
    return init(jax.random.key(seed))


def new_state(graphdef: Any, model: Any, num_items: int, optimizer: Optimizer, key: jax.Array):
    """The train state that `init_state` makes of key(seed), as a pure function of the key."""
    return _state(graphdef, _params(model, num_items, key), optimizer)


def abstract_state(graphdef: Any, params: dict, optimizer: Optimizer) -> dict:
    """Shapes and placement of the train state around abstract `params`, to restore into."""
    return concrete(jax.eval_shape(lambda p: _state(graphdef, p, optimizer), params))


def train_step(graphdef: Any, optimizer: Optimizer, seed: int, microbatches: int = 1) -> Callable:
    """The jitted step (state, batch) -> (state, metrics); `state` is donated.

    All randomness is fold_in(key(seed), step), so a step can be done again bit by bit. The metrics
    are scalars: loss, every named term, grad_norm.

    Args:
      graphdef: of the model, see `split_model`.
      optimizer: see `make_optimizer`.
      seed: of dropout and negatives.
      microbatches: the batch's rows are worked through in so many turns and the gradients summed:
        the same step but for the draws of dropout and negatives, for a loss that is a mean over
        `batch['weights']`, as all losses of independent rows are. Less memory, and faster on a CPU
        once the activations of a turn fit its caches.
    """
    dense = functools.partial(_dense_update, microbatches=microbatches)
    update = _sparse_update if optimizer.sparse else dense
    ema = optimizer.settings.ema

    @jax.jit(donate_argnums=0)
    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state['step'])
        new = {}
        if 'memory' in state:
            model = nnx.merge(graphdef, state['params'])
            batch, new['memory'] = model.remember(batch, state['memory'], state['step'] + 1, key)
        params, opt_state, loss, terms, norm = update(graphdef, optimizer, state, batch, key)
        new |= {'step': state['step'] + 1, 'params': params, 'opt_state': opt_state}
        if ema:
            new['ema'] = average(state['ema'], params, ema, state['step'])
        return new, {'loss': loss, **terms, 'grad_norm': norm}

    return step


def _dense_update(graphdef, optimizer, state, batch, key, microbatches):
    params = state['params']

    def loss(params, batch, key):
        return nnx.merge(graphdef, params).loss(batch, key)

    gradient = jax.value_and_grad(loss, has_aux=True)
    if microbatches > 1:
        (value, terms), grads = _accumulated(gradient, params, batch, key, microbatches)
    else:
        (value, terms), grads = gradient(params, batch, key)
    updates, opt_state = optimizer.tx.update(grads, state['opt_state'], params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, value, terms, optax.global_norm(grads)


def _accumulated(gradient, params, batch, key, microbatches):
    """`gradient(params, batch, key)` from rows 0, m, 2m .., then 1, m + 1 .. of the batch."""
    turns = jax.tree.map(lambda x: jnp.moveaxis(split_rows(x, microbatches), 1, 0), batch)
    total = jnp.maximum(batch['weights'].sum(), 1e-9)

    def turn(sums, inputs):
        number, rows = inputs
        result = gradient(params, rows, jax.random.fold_in(key, number))
        share = rows['weights'].sum() / total
        return jax.tree.map(lambda s, r: s + share * r, sums, result), None

    first = jax.tree.map(lambda x: x[0], turns)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, params, first, key))
    return jax.lax.scan(turn, zeros, (jnp.arange(microbatches), turns))[0]


def _sparse_update(graphdef, optimizer, state, batch, key):
    """The same for a table of which only the rows named by the batch take part, see `sparse`."""
    params, opt_state, step = state['params'], state['opt_state'], state['step'] + 1
    batch = nnx.merge(graphdef, params).sample(batch, key)

    def loss(params, batch):
        return nnx.merge(graphdef, params).loss(batch, key)

    (value, terms), (ids, rows, grads) = sparse.value_and_grad(loss, params, batch)
    norm = optax.global_norm((rows, grads))
    if optimizer.settings.clip_norm:  # over all parameters, before tx clips its own
        shrink = jnp.minimum(1, optimizer.settings.clip_norm / norm)
        rows, grads = jax.tree.map(lambda g: g * shrink, (rows, grads))
    rest = {name: params[name] for name in grads}
    updates, rest_state = optimizer.tx.update(grads, opt_state['rest'], rest)
    table, table_state = sparse.update(
        params['table'],
        opt_state['table'],
        ids,
        rows,
        step,
        optimizer.schedule(state['step']),
        optimizer.settings,
    )
    params = {**optax.apply_updates(rest, updates), 'table': table}
    return params, {'rest': rest_state, 'table': table_state}, value, terms, norm


def evaluated(state: dict) -> dict:
    """The parameters to evaluate and serve: the averaged ones if there are any."""
    return state.get('ema', state['params'])


def _build(model, num_items, key):
    return model.make(num_items, rngs=nnx.Rngs(key))


def _params(model, num_items, key):
    return nnx.to_pure_dict(nnx.state(_build(model, num_items, key), nnx.Param))


def _state(graphdef, params, optimizer):
    if optimizer.sparse:
        rest = {name: value for name, value in params.items() if name != 'table'}
        table = sparse.init(params['table'], optimizer.settings.table)
        opt_state = {'rest': optimizer.tx.init(rest), 'table': table}
    else:
        opt_state = optimizer.tx.init(params)
    state = {'step': jnp.zeros((), jnp.int32), 'params': params, 'opt_state': opt_state}
    if optimizer.settings.ema:
        state['ema'] = jax.tree.map(jnp.copy, params)
    model = nnx.merge(graphdef, params)
    memory = model.init_memory() if hasattr(model, 'init_memory') else {}
    if memory:
        state['memory'] = memory
    return state
