"""C2DSR: reductions to SASRec, its infomax term, its graphs, and what no event may see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import jit, made, make
from test_domains import log as log_of

from jaxrec import rng
from jaxrec.config import Data, Train
from jaxrec.data import domains
from jaxrec.data.splits import leave_one_out
from jaxrec.devices.mesh import put_batch, put_whole
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment, check
from jaxrec.models import c2dsr, sasrec
from jaxrec.tasks import next_item

ITEMS, LENGTH, DIM = 63, 8, 6  # with padding and the class of no item one row more than 64
BARE = {'graph': 0, 'mix': 1.0, 'pad': False}


def log(**changes):
    return log_of(count=ITEMS, **changes)


def problem_of(histories, **model):
    experiment = Experiment(
        model=c2dsr.Config(**{'dim': DIM, 'blocks': 1, 'max_len': LENGTH, **model}),
        task=next_item.Config(in_domain=True, cutoffs=(1, 10)),
        data=Data(),
        train=Train(batch_rows=8),
    )
    check(experiment)
    return next_item.NextItem(experiment, histories, {'data_hash': '', 'path': ''})


def built(**model):
    """(problem, constants, graphdef, parameters, batch of training rows)."""
    problem = problem_of(log(), **model)
    config = c2dsr.Config(**{'dim': DIM, 'blocks': 1, 'max_len': LENGTH, **model})
    batch = jax.tree.map(jnp.asarray, problem.batches()(0))
    constants = jax.tree.map(jnp.asarray, problem.constants)
    graphdef, params = make(config, ITEMS)
    return problem, constants, graphdef, jax.tree.map(jnp.asarray, params), batch


def whole_rows(constants, seed=0, rows=5):
    """Histories that fill their rows, of both domains."""
    items = np.random.default_rng(seed).integers(1, ITEMS + 1, (rows, LENGTH)).astype(np.int32)
    ones = np.ones_like(items)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), items.shape)
    batch = {'items': items, 'segments': ones, 'positions': positions}
    return jax.tree.map(jnp.asarray, batch), np.asarray(constants['domains'])[items]


def as_sasrec(params, table, encoder):
    """A SASRec's parameters from those of one encoder."""
    rest = {n: encoder[n] for n in ('positions', 'blocks', 'norm')}
    return {**params, **rest, 'table': table}


@pytest.mark.parametrize('once', [False, True])
def test_merged_alone_is_sasrec_with_twice_the_vectors(once):
    """Check 1.5.2: no graph, no single encoders; with the correction the vectors are its own."""
    _, constants, graphdef, params, _ = built(own=False, once=once, **BARE)
    batch, _ = whole_rows(constants)
    model = nnx.merge(graphdef, params)
    catalogue = model.catalogue(constants)
    got = model.queries(batch, catalogue)[:, 0, :DIM]
    config = sasrec.Config(variant='2018', dim=DIM, blocks=1, max_len=LENGTH, init='xavier_normal')
    other, theirs = made(lambda: config.make({'item': ITEMS}, rngs=nnx.Rngs(0)))
    theirs = jax.tree.map(jnp.asarray, theirs)
    table = params['items'][0] * (1 if once else 2)
    theirs = as_sasrec(theirs, table, params['encoders'][0])
    theirs_model = nnx.merge(other, theirs)
    theirs_model.norm.epsilon = model.encoders[0].norm.epsilon
    want = theirs_model.encode(batch, table, last=1)[:, 0]
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def test_one_domain_is_sasrec_on_its_own_events():
    """Check 1.5.2: without the merged encoder, holes are as if they were not there, if masked."""
    _, constants, graphdef, params, _ = built(merged=False, masked=True, **BARE)
    batch, domain = whole_rows(constants, rows=2)
    model = nnx.merge(graphdef, params)
    catalogue = model.catalogue(constants)
    got = model.queries(batch, catalogue)
    for n in (1, 2):
        for row in range(len(domain)):
            chosen = np.flatnonzero(domain[row] == n)
            items = np.asarray(batch['items'])[row, chosen][None]
            ones = np.ones_like(items)
            alone = model.encoders[n](items, catalogue['tokens'][n], ones, ones > 0)
            mine = got[row, 0, (n - 1) * DIM : n * DIM]
            np.testing.assert_allclose(mine, alone[0, -1], rtol=2e-4, atol=2e-5)
    other = nnx.merge(built(merged=False, **BARE)[2], params)  # holes are seen
    assert np.abs(other.queries(batch, catalogue) - got).max() > 1e-3


def test_scores_are_those_of_the_paper():
    """W_X (h + h^X) + b of items of X, W_Y (h + h^Y) + b of Y, by one dot product."""
    _, constants, graphdef, params, _ = built()
    batch, domain = whole_rows(constants)
    model = nnx.merge(graphdef, params)
    catalogue = model.catalogue(constants)
    scores = model.queries(batch, catalogue)[:, 0] @ catalogue['items'].T
    hidden = model.encode(batch['items'], batch['segments'], domain, catalogue['tokens'])
    heads, bias = params['heads'], params['bias']
    of_items = np.asarray(constants['domains'])
    for row in range(len(domain)):
        for item in range(1, ITEMS + 1):
            n = of_items[item]
            last = np.flatnonzero(domain[row] == n)[-1]
            vector = hidden[0][row, -1] + hidden[n][row, last]
            want = heads[item] @ vector + bias[item]
            np.testing.assert_allclose(scores[row, item], want, rtol=1e-4, atol=1e-4)


def slow_softmax(scores, target, candidates):
    return np.log(np.exp(scores[candidates]).sum()) - scores[target]


@pytest.mark.parametrize('pad', [True, False])
def test_losses_against_loops(pad):
    """Both cross-entropies among the items of the target's domain and the class of no item."""
    _, constants, graphdef, params, batch = built(mix=1.0, pad=pad)
    model = nnx.merge(graphdef, params)
    rate = model.config.dropout
    model.config.dropout = 0.0
    for encoder in model.encoders:
        encoder.rate = 0.0
        for block in encoder.blocks:
            block.rate = 0.0
    _, (terms, _) = model.loss(batch, constants, {}, jax.random.key(0))
    model.config.dropout = rate
    of_items = np.asarray(constants['domains'])
    items, targets, segments = (np.asarray(batch[n]) for n in ('items', 'targets', 'segments'))
    hidden = model.encode(
        *map(jnp.asarray, (items, segments, of_items[items])), model.tokens(constants)
    )
    hidden = [np.asarray(h, np.float64) for h in hidden]
    heads, bias, none = np.float64(params['heads']), np.float64(params['bias']), ITEMS + 1
    merged, own = [], []
    for row, place in zip(*np.nonzero(segments), strict=True):

        def value(query, of_none, target):
            scores = heads @ query + bias
            scores[none] = heads[none] @ of_none + bias[none]
            mine = np.flatnonzero(of_items[: ITEMS + 1] == of_items[target])
            return slow_softmax(scores, target, np.append(mine, none) if pad else mine)

        h = hidden[0][row, place]
        merged.append(value(h, h, targets[row, place]))
        n, here = of_items[items[row, place]], segments[row, place]
        alone = hidden[n][row, place]
        for later in range(place, items.shape[1]):
            if segments[row, later] == here and of_items[targets[row, later]] == n:
                own.append(value(h + alone, alone, targets[row, later]))
                break
    np.testing.assert_allclose(terms['merged'], np.mean(merged), rtol=1e-4)
    np.testing.assert_allclose(terms['own'], np.mean(own), rtol=1e-4)


@pytest.mark.parametrize('pad', [True, False])
def test_served_learns_what_lists_are_made_of(pad):
    """Every event, for the next one: h and h^X of the last event of X so far, by loops.

    At the last event of a log the vector is the one that `queries` makes of it.
    """
    _, constants, graphdef, params, batch = built(mix=1.0, pad=pad, served=True, dropout=0.0)
    model = nnx.merge(graphdef, params)
    _, (terms, _) = model.loss(batch, constants, {}, jax.random.key(0))
    of_items, tokens = np.asarray(constants['domains']), model.tokens(constants)
    items, targets, segments = (np.asarray(batch[n]) for n in ('items', 'targets', 'segments'))
    domain = of_items[items]
    hidden = model.encode(*map(jnp.asarray, (items, segments, domain)), tokens)
    hidden = [np.asarray(h, np.float64) for h in hidden]
    heads, bias, none = np.float64(params['heads']), np.float64(params['bias']), ITEMS + 1
    catalogue = model.catalogue(constants)
    values, lengths = [], []
    for row, place in zip(*np.nonzero(segments), strict=True):
        target = targets[row, place]
        n, start = of_items[target], (segments[row] == segments[row, place]).argmax()
        of_n = start + np.flatnonzero(domain[row, start : place + 1] == n)
        alone = hidden[n][row, of_n[-1] if len(of_n) else place]
        query = hidden[0][row, place] + alone
        scores = heads @ query + bias
        scores[none] = heads[none] @ alone + bias[none]
        mine = np.flatnonzero(of_items[: ITEMS + 1] == n)
        values.append(slow_softmax(scores, target, np.append(mine, none) if pad else mine))

        log = items[row, start : place + 1]
        history = np.concatenate([np.zeros(LENGTH - len(log), np.int32), log])[None]
        shown = {'items': jnp.asarray(history), 'segments': jnp.asarray((history > 0).astype(int))}
        listed = model.queries(shown, catalogue)[0, 0, (n - 1) * DIM : n * DIM]
        np.testing.assert_allclose(listed, query, rtol=2e-4, atol=2e-5)
        lengths.append((len(of_n) > 0, len(of_n) > 0 and of_n[-1] < place))
    assert {(False, False), (True, False), (True, True)} == set(lengths)
    np.testing.assert_allclose(terms['own'], np.mean(values), rtol=1e-4)


def test_infomax():
    """Check 1.5.1, 3 and 5: 2 log 2 a domain at zero; users of one domain alone add nothing."""
    _, constants, graphdef, params, batch = built(dropout=0.0)

    def infomax(params, batch):
        model = nnx.merge(graphdef, params)
        value, (terms, _) = model.loss(batch, constants, {}, jax.random.key(0))
        return terms['infomax'], value

    run, critics = jit(jax.value_and_grad(infomax, has_aux=True)), params['critics']
    zero = {**params, 'critic_bias': jnp.zeros(2), 'critics': jax.tree.map(jnp.zeros_like, critics)}
    (found, _), _ = run(zero, batch)
    np.testing.assert_allclose(found, 4 * np.log(2), rtol=1e-6)

    first = np.flatnonzero(np.asarray(constants['domains']) == 1)[0]
    alone = jnp.where(batch['segments'] > 0, first, 0).astype(jnp.int32)
    (found, value), _ = run(params, {**batch, 'items': alone})
    assert found == 0 and np.isfinite(value)

    for n in (1, 2):  # the other domain's term is constant where its critic is 0
        _, gradient = run({**params, 'critics': {**critics, 2 - n: 0 * critics[2 - n]}}, batch)
        of = [jax.tree.leaves([gradient[x][m] for x in ('items', 'encoders')]) for m in range(3)]
        assert not any(np.any(x) for x in of[3 - n])
        assert all(np.any(x) for x in (gradient['items'][n], gradient['items'][0]))


def slow_infomax(hidden, false, segments, domain, params):
    """Terms of L_X and of L_Y, one of every user of both domains."""
    values = [[], []]
    for row in range(len(domain)):
        for user in range(1, int(segments[row].max()) + 1):
            here = segments[row] == user
            at = [here & (domain[row] == n) for n in (1, 2)]
            if not (at[0].any() and at[1].any()):
                continue
            for n in (0, 1):
                mine = np.float64(hidden[1 + n])[row][at[n]].mean(0)
                left = mine @ np.float64(params['critics'][n])
                true, wrong = (
                    left @ np.float64(h)[row][at[1 - n]].mean(0) + params['critic_bias'][n]
                    for h in (hidden[0], false[n])
                )
                values[n].append(np.log1p(np.exp(-true)) + np.log1p(np.exp(wrong)))
    return values


def test_the_whole_loss_and_its_false_contexts():
    """mix (both cross-entropies) + (1 - mix) (L_X + L_Y), as a step draws what is false.

    L_X reads events of Y in a log whose X alone was replaced, and L_Y the reverse.
    """
    _, constants, graphdef, params, batch = built(mix=0.6, dropout=0.0)
    params['critic_bias'] = np.array([0.3, -0.2], np.float32)
    domain, key = constants['domains'][batch['items']], jax.random.key(0)

    def step(params):
        model = nnx.merge(graphdef, params)
        value, (terms, _) = model.loss(batch, constants, {}, key)
        drawn = rng.keys(key, *c2dsr._STREAMS)['corrupt']
        tokens, logs = model.tokens(constants), [batch['items']]
        logs += model._corrupted(batch['items'], domain, constants, drawn)
        read = [model.encode(x, batch['segments'], domain, tokens) for x in logs]
        return value, terms, read[0], [x[0] for x in read[1:]]

    value, terms, hidden, false = jit(step)(params)
    values = slow_infomax(hidden, false, *map(np.asarray, (batch['segments'], domain)), params)
    assert len(values[0]) == len(values[1]) == 3
    want = np.mean(values[0]) + np.mean(values[1])
    np.testing.assert_allclose(terms['infomax'], want, rtol=1e-4)
    whole = 0.6 * (terms['merged'] + terms['own']) + 0.4 * want
    np.testing.assert_allclose(value, whole, rtol=1e-5)


@pytest.mark.parametrize('own', [True, False])
def test_tied_heads_are_tokens(own):
    """Of the merged encoder's table, or without it of each domain's own."""
    settings = {'mix': 1.0, 'merged': not own, 'own': own, 'tied': True}
    _, constants, graphdef, params, _ = built(**settings)
    assert 'heads' not in params
    items = nnx.merge(graphdef, params).catalogue(constants)['items']
    of_items = np.asarray(constants['domains'])
    for item in range(1, ITEMS + 1):
        n = of_items[item]
        row = params['items'][n if own else 0][item]
        np.testing.assert_array_equal(items[item, (n - 1) * DIM : n * DIM], row)


def test_corruption_keeps_the_pattern():
    _, constants, graphdef, params, batch = built()
    of_items = np.asarray(constants['domains'])
    model = nnx.merge(graphdef, params)
    items = np.asarray(batch['items'])
    domain = of_items[items]
    drawn = model._corrupted(batch['items'], jnp.asarray(domain), constants, jax.random.key(1))
    for false, kept in zip(drawn, (2, 1), strict=True):
        false = np.asarray(false)
        np.testing.assert_array_equal(of_items[false], domain)
        np.testing.assert_array_equal(false[domain == kept], items[domain == kept])
        new = false[domain == 3 - kept]
        assert (new != items[domain == 3 - kept]).mean() > 0.5 and len(set(new.tolist())) > 5


def followers(histories):
    """Row i the mean of one-hot followers of item i in training: in the log, and in a domain."""
    ends, of_items = leave_one_out(histories).train_ends, domains.find(histories).of_items
    found = np.zeros((2, ITEMS + 1, ITEMS + 1))
    for user in range(histories.num_users):
        events = histories.items[histories.offsets[user] : ends[user]]
        for n, parts in enumerate([[events], [events[of_items[events] == n] for n in (1, 2)]]):
            for part in parts:
                np.add.at(found[n], (part[:-1], part[1:]), 1)
    return found / np.maximum(found.sum(2, keepdims=True), 1)


def test_graphs_are_of_training_events():
    """Check 1.5.4: rows sum to 1 or 0, and count who follows whom, in the log and in a domain."""
    histories = log()
    problem = problem_of(histories)
    for name, want in zip(('follow', 'follow_own'), followers(histories), strict=True):
        graph, got = problem.constants[name], np.zeros_like(want)
        got[graph.rows, graph.columns] = graph.values
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert set(np.round(got.sum(1), 5).tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize('graph', [1, 2])
def test_tokens_are_vectors_and_means_of_followers(graph):
    """E + the mean of E, A E, A A E ..: A of the log in the merged table, of a domain in its own.

    Nothing follows the class of no item, nor an item that ends its log.
    """
    _, constants, graphdef, params, _ = built(graph=graph)
    found = jit(lambda params: nnx.merge(graphdef, params).tokens(constants))(params)
    whole, own = followers(log())
    for n, matrix in enumerate((whole, own, own)):
        e = np.float64(params['items'][n])
        a = np.zeros((len(e), len(e)))
        a[: ITEMS + 1, : ITEMS + 1] = matrix
        hops = [np.linalg.matrix_power(a, k) @ e for k in range(graph + 1)]
        np.testing.assert_allclose(found[n], e + np.mean(hops, axis=0), atol=1e-5)


@pytest.mark.parametrize('graph', [1, 0])
def test_a_run_keeps_its_graphs(tmp_path, graph):
    """Where there is one: lists of a kept catalogue are those of the data, and it holds no more."""
    problem, constants, graphdef, params, _ = built(graph=graph)
    problem.catalogue.save(tmp_path)
    kept = jax.tree.map(jnp.asarray, problem._task.open_catalogue(tmp_path).constants)
    graphs = {'follow', 'follow_own'}
    assert set(constants) - set(kept) == {'of_domain'}
    assert (
        graphs & set(kept)
        == graphs & {p.stem for p in tmp_path.iterdir()}
        == (graphs if graph else set())
    )
    batch, _ = whole_rows(constants)
    model = nnx.merge(graphdef, params)
    one, two = (model.queries(batch, model.catalogue(c)) for c in (constants, kept))
    np.testing.assert_array_equal(one, two)


def test_other_numbers_of_items_are_the_same_vectors():
    """Check 1.5.4: of a log with its items numbered anew the graph makes the same tokens."""
    histories = log()
    new = np.concatenate([[0], np.random.default_rng(1).permutation(ITEMS) + 1])
    back = np.argsort(new)
    column = histories.item_features['domain'][back[1:] - 1]
    other = dataclasses.replace(
        histories, items=new[histories.items].astype(np.int32), item_features={'domain': column}
    )
    graphdef, params = make(problem_of(histories)._experiment.model, ITEMS)
    moved = [table.copy() for table in params['items'].values()]
    for table in moved:
        table[: ITEMS + 1] = table[back]
    found = []
    for given, tables in ((histories, params['items']), (other, dict(enumerate(moved)))):
        constants = jax.tree.map(jnp.asarray, problem_of(given).constants)
        model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, {**params, 'items': tables}))
        found.append(model.tokens(constants))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one[: ITEMS + 1], two[new], rtol=1e-5, atol=1e-6)
        assert np.abs(one[: ITEMS + 1] - two[: ITEMS + 1]).max() > 0.1


def test_later_events_change_nothing():
    """Check 1.5.3: with the graph as it is, what comes later is not seen."""
    _, constants, graphdef, params, _ = built()
    batch, domain = whole_rows(constants)
    model = nnx.merge(graphdef, params)
    tokens = model.tokens(constants)
    other = np.asarray(batch['items']).copy()
    other[:, -1] = other[:, -1] % ITEMS + 1
    both = [
        model.encode(jnp.asarray(x), batch['segments'], jnp.asarray(d), tokens)
        for x, d in ((batch['items'], domain), (other, np.asarray(constants['domains'])[other]))
    ]
    for one, two in zip(*both, strict=True):
        np.testing.assert_array_equal(one[:, :-1], two[:, :-1])


ALONE = {'merged': False, 'mix': 1.0, 'graph': 0, 'tied': True}  # heads of two tables


@pytest.mark.slow
@pytest.mark.parametrize('model', [{}, ALONE, {'served': True}], ids=['whole', 'tied', 'served'])
def test_the_same_on_any_mesh(mesh, model):
    """Loss and its gradient on one device and on four."""
    found = []
    for shape in ((1, 1), (2, 2)):  # the last rows are shared by 'data', tables by 'model'
        mesh(*shape)
        problem = problem_of(log())
        config = c2dsr.Config(dim=DIM, blocks=1, max_len=LENGTH, **model)
        graphdef, params = make(config, ITEMS)
        batch, constants = put_batch(problem.batches()(0)), put_whole(problem.constants)
        spec = jax.tree_util.tree_map_with_path(
            lambda path, x: jax.P('model', None) if path[0].key in ('items', 'heads') else jax.P(),
            params,
        )
        placed = jax.tree.map(
            lambda x, p: jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), p)),
            params,
            spec,
        )

        def loss(params, batch, constants, graphdef=graphdef):
            return nnx.merge(graphdef, params).loss(batch, constants, {}, jax.random.key(0))[0]

        found.append(jax.device_get(jit(jax.value_and_grad(loss))(placed, batch, constants)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), *(f[1] for f in found)
    )


def test_what_does_not_go_together():
    with pytest.raises(UserError, match='compares both kinds'):
        c2dsr.Config(own=False).check()
    with pytest.raises(UserError, match='model.served is of the encoders of single domains'):
        c2dsr.Config(own=False, served=True).check()
    with pytest.raises(UserError, match='one domain at a time: set task.in_domain'):
        check(Experiment(model=c2dsr.Config(), task=next_item.Config(), data=Data()))
    with pytest.raises(UserError, match='learns two domains together; here is a, b, c'):
        problem_of(log(names=np.array([b'a', b'b', b'c'])))
    bare = log()
    bare.item_features.clear()
    with pytest.raises(UserError, match='names no domains'):
        problem_of(bare)
