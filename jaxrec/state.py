"""The train state: a plain dict of step, params, opt_state and, with averaging, ema."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec import config, sharding
from jaxrec.optim import average


def split_model(model: Any, num_items: int) -> tuple[Any, dict]:
    """(graphdef, parameters as placed shapes) of a model's Config, without computing anything."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: _build(model, num_items, jax.random.key(0))))
    params = jax.eval_shape(lambda: _params(model, num_items, jax.random.key(0)))
    return graphdef, sharding.concrete(params)


def init_state(
    model: Any, num_items: int, optim: config.Optim, tx: optax.GradientTransformation, seed: int
) -> dict:
    """A new train state on the current mesh; a function of `seed` alone, whatever the mesh."""

    @jax.jit
    def init(key):
        return _state(_params(model, num_items, key), optim, tx)

    return init(jax.random.key(seed))


def abstract_state(params: dict, optim: config.Optim, tx: optax.GradientTransformation) -> dict:
    """Shapes and placement of the train state around abstract `params`, to restore into."""
    return sharding.concrete(jax.eval_shape(lambda p: _state(p, optim, tx), params))


def train_step(graphdef: Any, optim: config.Optim, tx: optax.GradientTransformation, seed: int):
    """The jitted step (state, batch) -> (state, metrics); `state` is donated.

    All randomness is fold_in(key(seed), step), so a step can be done again bit by bit. The metrics
    are scalars: loss, every named term, grad_norm.
    """

    @jax.jit(donate_argnums=0)
    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state['step'])

        def loss(params):
            return nnx.merge(graphdef, params).loss(batch, key)

        (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(state['params'])
        updates, opt_state = tx.update(grads, state['opt_state'], state['params'])
        params = optax.apply_updates(state['params'], updates)
        new = {'step': state['step'] + 1, 'params': params, 'opt_state': opt_state}
        if optim.ema:
            new['ema'] = average(state['ema'], params, optim.ema, state['step'])
        metrics = {'loss': value, **terms, 'grad_norm': optax.global_norm(grads)}
        return new, metrics

    return step


def evaluated(state: dict) -> dict:
    """The parameters to evaluate and serve: the averaged ones if there are any."""
    return state.get('ema', state['params'])


def _build(model, num_items, key):
    return model.make(num_items, rngs=nnx.Rngs(key))


def _params(model, num_items, key):
    return nnx.to_pure_dict(nnx.state(_build(model, num_items, key), nnx.Param))


def _state(params, optim, tx):
    state = {'step': jnp.zeros((), jnp.int32), 'params': params, 'opt_state': tx.init(params)}
    if optim.ema:
        state['ema'] = jax.tree.map(jnp.copy, params)
    return state
