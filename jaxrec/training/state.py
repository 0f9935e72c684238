"""The train state: a plain dict of step, params, opt_state and, where needed, ema and carry.

`carry` is what a model remembers besides its parameters, see `problem.Model`.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec import rng
from jaxrec.devices.mesh import (
    REPLICATED,
    abstract,
    concrete,
    put_batch,
    put_whole,
    split_rows,
)
from jaxrec.devices.programs import deterministic
from jaxrec.devices.tuning import tuning, turns
from jaxrec.errors import UserError
from jaxrec.problem import STATISTICS, ModelConfig, Problem
from jaxrec.training import sparse
from jaxrec.training.optim import Optimizer, average, make_optimizer

Sizes = Mapping[str, int]  # of the problem


def check_model(model: ModelConfig, problem: Problem) -> None:
    """Raises UserError for a model that is not one for the problem."""
    kind = type(model).__module__
    try:
        made = nnx.eval_shape(lambda: _build(model, problem.sizes, jax.random.key(0)))
    except KeyError as e:
        if e.args[0] in problem.sizes:
            raise
        raise UserError(
            f'{kind} is made for the size {e}, and this task has {", ".join(problem.sizes)}: '
            'choose another model or task'
        ) from e
    missing = [verb for verb in problem.verbs if not hasattr(made, verb)]
    if missing:
        raise UserError(
            f'{kind} has no {" and no ".join(missing)}, which this task asks for: choose another '
            'model or task'
        )


def split_model(model: ModelConfig, sizes: Sizes) -> tuple[Any, dict]:
    """(graphdef, parameters as placed shapes) of a model's Config, without computing anything."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: _build(model, sizes, jax.random.key(0))))
    params = jax.eval_shape(lambda: _params(model, sizes, jax.random.key(0)))
    return graphdef, concrete(params)


def init_state(model: ModelConfig, sizes: Sizes, optimizer: Optimizer, seed: int) -> dict:
    """A new train state on the current mesh; a function of `seed` alone, whatever the mesh."""
    return initialiser(model, sizes, optimizer)(rng.key(seed))


def initialiser(model: ModelConfig, sizes: Sizes, optimizer: Optimizer) -> Callable:
    """The jitted beginning key -> train state."""
    graphdef, _ = split_model(model, sizes)
    return jax.jit(lambda key: new_state(graphdef, model, sizes, optimizer, key))


def new_state(
    graphdef: Any, model: ModelConfig, sizes: Sizes, optimizer: Optimizer, key: jax.Array
) -> dict:
    """The train state that `init_state` makes of key(seed), as a pure function of the key."""
    return _state(graphdef, _params(model, sizes, key), optimizer)


def abstract_state(graphdef: Any, params: dict, optimizer: Optimizer) -> dict:
    """Shapes and placement of the train state around abstract `params`, to restore into."""
    return concrete(jax.eval_shape(lambda p: _state(graphdef, p, optimizer), params))


def train_step(
    graphdef: Any,
    optimizer: Optimizer,
    seed: int | jax.Array,
    microbatches: int = 1,
    precision: str = 'default',
    layouts: Any = None,
) -> Callable:
    """The jitted step (state, batch, constants) -> (state, metrics); `state` is donated.

    Args:
      graphdef, optimizer, seed, microbatches, precision: see `pure_step`.
      layouts: of the state, which comes and goes in these, see `sparse.layouts`.
    """
    return jax.jit(
        pure_step(graphdef, optimizer, seed, microbatches, precision),
        donate_argnums=0,
        out_shardings=(layouts, None),
        compiler_options=deterministic(),
    )


def pure_step(
    graphdef: Any,
    optimizer: Optimizer,
    seed: int | jax.Array,
    microbatches: int = 1,
    precision: str = 'default',
) -> Callable:
    """The step (state, batch, constants) -> (state, metrics).

    All randomness is fold_in(key(seed), step), so a step can be done again bit for bit. The metrics
    are scalars: loss, every named term, grad_norm.

    Args:
      graphdef: of the model, see `split_model`.
      optimizer: see `make_optimizer`.
      seed: of dropout and negatives; `rng.words` of one that is traced.
      microbatches: the batch's rows are worked through in so many turns and the gradients summed:
        the same step but for the draws of dropout and negatives, for a loss that is a mean over
        `batch['weights']`, as all losses of independent rows are. Less memory, and faster on a CPU
        once the activations of a turn fit its caches.
      precision: of matrix products, see `config.Train`.
    """
    dense = functools.partial(_dense_update, microbatches=microbatches)
    update = _sparse_update if optimizer.sparse else dense
    ema = optimizer.settings.ema

    def step(state, batch, constants=None):
        key = jax.random.fold_in(rng.key(seed), state['step'])
        with jax.default_matmul_precision(precision):
            new, loss, terms, norm = update(graphdef, optimizer, state, batch, constants or {}, key)
        new['step'] = state['step'] + 1
        if ema:
            new['ema'] = average(state['ema'], new['params'], ema, state['step'])
        return new, {'loss': loss, **terms, 'grad_norm': norm}

    return step


def turns_of(experiment: Any) -> int:
    """The turns of a step on the current mesh: train.microbatches, or what suits its devices."""
    train, model = experiment.train, experiment.model
    if not train.microbatches and (model.whole_batch() or experiment.optim.table != 'dense'):
        return 1
    rows = train.batch_rows // jax.sharding.get_mesh().shape.get('data', 1)
    return turns(train.microbatches, rows, model.inputs().max_len)


def _dense_update(graphdef, optimizer, state, batch, constants, key, microbatches):
    """(new parts of the state, loss, terms, length of the gradient)."""
    params = state['params']

    def loss(params, batch, carry, key):
        model = nnx.merge(graphdef, params)
        return model.loss(model.sample(batch, key), constants, carry, key)

    gradient = jax.value_and_grad(loss, has_aux=True)
    carry = state.get('carry', {})
    if microbatches > 1:
        value, terms, carry, grads = _accumulated(gradient, params, batch, carry, key, microbatches)
    else:
        (value, (terms, carry)), grads = gradient(params, batch, carry, key)
    updates, opt_state = optimizer.tx.update(grads, state['opt_state'], params)
    new = {'params': optax.apply_updates(params, updates), 'opt_state': opt_state}
    return _with_carry(new, carry), value, terms, optax.global_norm(grads)


def _accumulated(gradient, params, batch, carry, key, microbatches):
    """`gradient` from rows 0, m, 2m .., then 1, m + 1 .. of the batch, the carry handed on."""
    turns = jax.tree.map(lambda x: jnp.moveaxis(split_rows(x, microbatches), 1, 0), batch)
    total = jnp.maximum(batch['weights'].sum(), 1e-9)

    def one(rows, carry, key):
        (value, (terms, carry)), grads = gradient(params, rows, carry, key)
        return (value, terms, grads), carry

    def turn(state, inputs):
        (sums, carry), (number, rows) = state, inputs
        result, carry = one(rows, carry, jax.random.fold_in(key, number))
        share = rows['weights'].sum() / total
        return (jax.tree.map(lambda s, r: s + share * r, sums, result), carry), None

    first = jax.tree.map(lambda x: x[0], turns)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, first, carry, key)[0])
    turns = (jnp.arange(microbatches), turns)
    ((value, terms, grads), carry), _ = jax.lax.scan(
        turn, (zeros, carry), turns, unroll=tuning().turns_at_once
    )
    return value, terms, carry, grads


def _sparse_update(graphdef, optimizer, state, batch, constants, key):
    """The same for tables of which only the rows named by the batch take part, see `sparse`."""
    params, opt_state, step = state['params'], state['opt_state'], state['step'] + 1
    batch = nnx.merge(graphdef, params).sample(batch, key)

    def loss(params):
        model = nnx.merge(graphdef, params)
        return model.loss(batch, constants, state.get('carry', {}), key)

    (value, (terms, carry)), grads = sparse.value_and_grad(loss, params, batch, optimizer.tables)
    rows, rest_grads = grads
    norm = optax.global_norm(([one.values for one in rows.values()], rest_grads))
    if optimizer.settings.clip_norm:  # over all parameters, before tx clips its own
        shrink = jnp.minimum(1, optimizer.settings.clip_norm / norm)
        rest_grads = jax.tree.map(lambda g: g * shrink, rest_grads)
    rest = {name: params[name] for name in rest_grads}
    updates, rest_state = optimizer.tx.update(rest_grads, opt_state['rest'], rest)
    new, slots = optax.apply_updates(rest, updates), {}
    for name, own in rows.items():
        values = own.values * shrink if optimizer.settings.clip_norm else own.values
        new[name], slots[name] = sparse.update(
            params[name],
            opt_state['tables'][name],
            own.ids,
            values,
            step,
            optimizer.schedule(state['step']),
            optimizer.settings,
        )
    new = {'params': new, 'opt_state': {'rest': rest_state, 'tables': slots}}
    return _with_carry(new, carry), value, terms, norm


def evaluated(state: dict) -> dict:
    """The parameters to evaluate and serve: the averaged ones if there are any.

    Among them those that follow the batches are as the carry has them, see `Model.carry`.
    """
    params = state.get('ema', state['params'])
    return _replaced(params, state.get('carry', {}).get(STATISTICS, {}))


def _replaced(tree, values):
    inner = {k: _replaced(tree[k], v) if isinstance(v, dict) else v for k, v in values.items()}
    return {**tree, **inner}


def _with_carry(state, carry):
    return {**state, 'carry': carry} if carry else state


def _build(model, sizes, key):
    return model.make(sizes, rngs=nnx.Rngs(key))


def _params(model, sizes, key):
    return nnx.to_pure_dict(nnx.state(_build(model, sizes, key), nnx.Param))


def _state(graphdef, params, optimizer):
    if optimizer.sparse:
        rest = {name: value for name, value in params.items() if name not in optimizer.tables}
        kind = optimizer.settings.table
        tables = {name: sparse.init(params[name], kind) for name in optimizer.tables}
        opt_state = {'rest': optimizer.tx.init(rest), 'tables': tables}
    else:
        opt_state = optimizer.tx.init(params)
    state = {'step': jnp.zeros((), jnp.int32), 'params': params, 'opt_state': opt_state}
    if optimizer.settings.ema:
        state['ema'] = jax.tree.map(jnp.copy, params)
    return _with_carry(state, nnx.merge(graphdef, params).carry())


class Program:
    """One run on the current mesh: how its state begins, steps, and what of it is evaluated.

    Args:
      experiment: whole.
      problem: what it learns.
      horizon: steps of the learning rate's decay.
    """

    def __init__(self, experiment: Any, problem: Problem, horizon: int):
        self._experiment, self._sizes, self._horizon = experiment, problem.sizes, horizon
        check_model(experiment.model, problem)
        self.graphdef, self._params = split_model(experiment.model, problem.sizes)
        self.optimizer = make_optimizer(experiment.optim, experiment.model, horizon)
        self._given, self._step, self._layouts = problem.constants, None, None

    @functools.cached_property
    def constants(self) -> dict:
        """Of the problem, placed."""
        return put_whole(self._given)

    def init(self) -> dict:
        """A new train state."""
        seed = self._experiment.train.seed
        return init_state(self._experiment.model, self._sizes, self.optimizer, seed)

    def begin(self, params: dict) -> dict:
        """A new train state around placed `params`: averages and carry begin with these."""
        return jax.jit(lambda params: _state(self.graphdef, params, self.optimizer))(params)

    def abstract(self) -> dict:
        """Shapes and placement of the state, to restore into."""
        return abstract_state(self.graphdef, self._params, self.optimizer)

    def start(self, begun: int) -> None:
        """Before the first step, of a state that had `begun` steps behind it when the run began."""
        self._step, self._layouts = self._made(begun)
        _ = self.constants  # placed now: a step may be traced

    def put(self, batches: Sequence[dict]) -> dict:
        """The batch of the run, placed."""
        return put_batch(batches[0])

    def step(self, state: dict, batch: dict) -> tuple[dict, dict]:
        """(state, metrics) after a batch; the state is donated."""
        return self._step(sparse.laid_out(state, self._layouts), batch, self.constants)

    def lowered(self, batch: dict) -> jax.stages.Lowered:
        """The step of a batch's shapes, to be compiled for devices that need not be here.

        It needs no `start`, and nothing is placed.
        """
        step, layouts = self._made(0)
        state = sparse.laid_out(self.abstract(), layouts)
        return step.lower(state, batch, abstract(self._given, REPLICATED))

    def _made(self, begun: int) -> tuple[Callable, Any]:
        """(jitted step, layouts of the state in it)."""
        experiment = self._experiment
        optimizer = make_optimizer(experiment.optim, experiment.model, self._horizon, begun)
        layouts = sparse.layouts(self.abstract(), optimizer.tables)
        train, turns = experiment.train, turns_of(experiment)
        step = train_step(self.graphdef, optimizer, train.seed, turns, train.precision, layouts)
        return step, layouts

    def parameters(self, state: dict) -> Iterator[dict]:
        """Those to evaluate, run by run."""
        yield evaluated(state)

    def about(self) -> str:
        """How large and where, for people."""
        parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(self._params))
        devices = jax.sharding.get_mesh().size
        return (
            f'{parameters:,} parameters on {devices} {jax.default_backend()} '
            f'device{"s" if devices > 1 else ""}'
        )
