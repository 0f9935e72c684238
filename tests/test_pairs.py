"""Recall from pairs: batches, what is measured, files of one's own, serving, and mistakes."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
import runs
from test_train_test_text import histories

from jaxrec import evaluate
from jaxrec.config import Data, Mesh, Optim, Train
from jaxrec.data import splits
from jaxrec.data.pairs import PairBatches, training_pairs
from jaxrec.errors import UserError
from jaxrec.evaluation import linear
from jaxrec.experiment import Experiment, applied, check
from jaxrec.models import lightgcn, sasrec
from jaxrec.serving.recommender import Recommender
from jaxrec.tasks import next_item
from jaxrec.training.loop import fit, fit_together
from jaxrec.training.restore import load_trained


def quiet(line):
    del line


def experiment(folder, **changes):
    given = Experiment(
        task=next_item.Config(
            split='random',
            test_share=0.2,
            valid_share=0.2,
            targets='all',
            windows='pairs',
            unseen_negatives=1,
            cutoffs=(5, 20),
        ),
        model=lightgcn.Config(dim=8, layers=2),
        data=Data(log=str(write_edges(folder)), time_col='', data_dir=str(folder / 'data')),
        optim=Optim(learning_rate=0.02),
        train=Train(batch_rows=128, epochs=4, metric='Recall@20'),
        mesh=Mesh(1, 1),
    )
    return applied(given, changes)


def edges():
    """Distinct pairs of 40 users and 60 items, two groups that mostly keep apart."""
    rng = np.random.default_rng(0)
    found = set()
    for user in range(40):
        for _ in range(14):
            item = int(rng.integers(0, 30)) + 30 * int(user % 2 != (rng.random() < 0.1))
            found.add((f'u{user:02}', item))
    order = rng.permutation(len(found))
    return [sorted(found)[n] for n in order]


def write_edges(folder, extra=()):
    """One's own edge list: a table without times, in no order."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / 'edges.csv'
    lines = [f'{user},{item}' for user, item in [*extra, *edges()]]
    path.write_text('\n'.join(['user,item', *lines]) + '\n')
    return path


# Batches ------------------------------------------------------------------------------------------


def batches(rows=64, **options):
    h = histories(np.random.default_rng(1).integers(2, 30, 40))
    pairs = training_pairs(h, h.offsets[1:])
    return h, pairs, PairBatches(pairs, h.num_items, rows=rows, seed=5, **options)


def test_pairs_by_user():
    _, pairs, some = batches(by_user=True, negatives=1)
    counts, owned = collections.Counter(), {tuple(pair) for pair in pairs.T.tolist()}
    for step in range(40 * some.steps_per_epoch):
        batch = some(step)
        kept = batch['weights'] > 0
        found = zip(batch['users'][kept].tolist(), batch['targets'][kept].tolist(), strict=True)
        counts.update(found)
    assert set(counts) == owned  # what trains is the users' own, and all of it
    drawn = counts.total()
    assert drawn == 40 * pairs.shape[1]
    lengths = np.bincount(pairs[0], minlength=40)
    for (user, _), n in counts.items():
        expected = drawn / 40 / lengths[user]
        assert abs(n - expected) < 5 * expected**0.5 + 1  # Poisson, five deviations
    again = batches(by_user=True, negatives=1)[2](3)
    np.testing.assert_equal(again, some(3))


def test_training_pairs():
    h = histories([5, 3])
    h.items[1] = h.items[0]  # a repeat is one edge
    users, items = training_pairs(h, np.array([4, 6]))
    assert users.tolist() == [0, 0, 0, 1] and items.tolist() == [*h.items[[0, 2, 3]], h.items[5]]
    with pytest.raises(UserError, match='no training event is left'):
        training_pairs(h, h.offsets[:-1])


def test_an_epoch_has_every_pair_once():
    _, pairs, made = batches(negatives=2)
    assert made.targets_per_epoch == pairs.shape[1] and made.steps_per_epoch == -(
        -pairs.shape[1] // 64
    )
    known, orders = collections.Counter(zip(*pairs.tolist(), strict=True)), []
    for epoch in range(2):
        seen = []
        for n in range(made.steps_per_epoch):
            batch = made(epoch * made.steps_per_epoch + n)
            real = batch['weights'] > 0
            assert batch['users'].shape == (64,) and batch['negatives'].shape == (64, 2)
            seen += zip(batch['users'][real].tolist(), batch['targets'][real].tolist(), strict=True)
            for user, negatives in zip(batch['users'], batch['negatives'][real], strict=False):
                assert all((int(user), j) not in known for j in negatives.tolist())
            assert ((batch['negatives'][real] >= 1) & (batch['negatives'][real] <= 60)).all()
            assert not batch['targets'][~real].any() and not batch['negatives'][~real].any()
        assert collections.Counter(seen) == known
        orders.append(seen)
    assert orders[0] != orders[1]


def test_batches_are_a_function_of_the_step_and_split_over_processes():
    _, _, made = batches(negatives=1)
    _, _, again = batches(negatives=1)
    halves = [batches(negatives=1, process=(n, 2))[2](3) for n in range(2)]
    for name, column in made(3).items():
        np.testing.assert_array_equal(column, again(3)[name])
        np.testing.assert_array_equal(column, np.concatenate([h[name] for h in halves]))
    with pytest.raises(UserError, match='train.batch_rows=63 does not divide over 2'):
        batches(rows=63, process=(0, 2))
    with pytest.raises(UserError, match='a user has every item'):
        PairBatches(np.array([[0, 0], [1, 2]]), 2, rows=4, seed=0, negatives=1)


# A run --------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    given = experiment(folder)
    return given, folder / 'run', fit(given, folder / 'run')


def slow_metrics(trained, which, k=20):
    """Recall and NDCG at k as the papers' code has them, user by user."""
    problem = trained.problem
    h, split = problem.source, problem.split
    with jax.set_mesh(trained.mesh):
        catalogue = jax.jit(problem.begin)(model_of(trained), trained.constants)
    users, items = (np.asarray(catalogue[n], np.float64) for n in ('users', 'items'))
    recalls, gains = [], []
    targets = getattr(split, which)
    for user, end, stop in zip(targets.users, targets.ends, targets.stops, strict=True):
        scores = users[user] @ items[: h.num_items + 1].T
        scores[0] = -np.inf
        scores[h.items[h.offsets[user] : end]] = -np.inf  # training items, at test validation's too
        wanted = set(h.items[end:stop].tolist())
        best = np.argsort(-scores)[:k].tolist()
        hits = [item in wanted for item in best]
        recalls.append(sum(hits) / len(wanted))
        gain = sum(hit / np.log2(place + 2) for place, hit in enumerate(hits))
        gains.append(gain / sum(1 / np.log2(p + 2) for p in range(min(len(wanted), k))))
    return np.mean(recalls), np.mean(gains)


def model_of(trained):
    from flax import nnx

    return nnx.merge(trained.graphdef, trained.params)


def test_recall_and_ndcg_over_sets(run):
    _, folder, summary = run
    trained = load_trained(folder)
    for which in ('valid', 'test'):
        measured = evaluate(folder, which)
        expected = slow_metrics(trained, which)
        got = measured.metrics['Recall@20'], measured.metrics['NDCG@20']
        assert got == pytest.approx(expected, abs=1e-6)
        assert len(measured.values['Recall@20']) == 40
    assert summary['best'] > 0.5  # 30 items are left in a user's own group: chance is .4
    found = evaluate.evaluate(trained, 'test')[2]
    assert set(found) == {'popularity', *linear.NAMES}
    assert found['ease'].metrics['Recall@20'] > found['popularity'].metrics['Recall@20']


def test_lists_with_and_without_the_data(run, tmp_path):
    """Users of the data by their own vectors, others folded in; the run alone is enough."""
    given, folder, _ = run
    recommender = Recommender(load_trained(folder), 10)
    h = recommender.histories
    user = h.find_user('u07')
    known = recommender.user(user)
    assert not {row['item'] for row in known} & {h.raw_item(i) for i in h.history(user)}
    (folded,) = recommender.recommend([[h.raw_item(i) for i in h.history(user)]])
    assert len(folded) == 10 and folded[0]['score'] != known[0]['score']
    shared = {row['item'] for row in folded} & {row['item'] for row in known}
    assert len(shared) >= 5
    moved = tmp_path / 'moved'
    folder.rename(moved)
    try:
        (folder.parent / 'edges.csv').rename(tmp_path / 'away.csv')
        (folder.parent / 'data').rename(tmp_path / 'gone')
        (again,) = Recommender(load_trained(moved), 10).recommend(
            [[h.raw_item(i) for i in h.history(user)]]
        )
        assert again == folded
    finally:
        (tmp_path / 'gone').rename(folder.parent / 'data')
        (tmp_path / 'away.csv').rename(folder.parent / 'edges.csv')
        moved.rename(folder)
    del given


def test_seeds_in_one_program(tmp_path):
    """Each as it is alone, but for the order of sums."""
    seeds = {f's{n}': experiment(tmp_path, **{'train.seed': n, 'train.epochs': 1}) for n in (3, 4)}
    fit_together(seeds, tmp_path / 'both')
    fit(seeds['s4'], tmp_path / 'alone')
    one, other = (load_trained(tmp_path / name).params for name in ('both/s4', 'alone'))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_without_validation_the_last_parameters_are_served(tmp_path):
    given = experiment(tmp_path, **{'task.valid_share': 0.0, 'train.epochs': 1})
    summary = fit(given, tmp_path / 'run')
    assert summary['step'] == load_trained(tmp_path / 'run').step
    problem = load_trained(tmp_path / 'run').problem
    assert set(problem.evaluations) == {'test'}
    assert evaluate(tmp_path / 'run').metrics['Recall@20'] > 0
    with pytest.raises(UserError, match='this run has test'):
        evaluate(tmp_path / 'run', 'valid')


def test_a_dry_run_tells_of_the_graph(tmp_path):
    path = runs.write(tmp_path / 'config.py', experiment(tmp_path))
    done = runs.inside('train', f'--config={path}', '--dry_run', '--mesh=4,2')
    assert done.returncode == 0, done.stderr
    assert 'constants' in done.stdout


def test_a_repeat_is_one_edge_of_a_split_by_time_and_stops_another(tmp_path):
    given = experiment(tmp_path)
    write_edges(tmp_path, extra=edges()[:3])
    with pytest.raises(UserError, match='has item .* twice .3 repeats in all'):
        given.task.open(given, quiet)
    other = applied(given, {'task.split': 'leave-one-out', 'task.targets': 'first'})
    problem = other.task.open(other, quiet)
    assert any('repeated pairs are one edge each' in note for note in problem.notes)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'task.windows': 'last'}, "trains on task.windows='pairs', not 'last'"),
        ({'task.unseen_negatives': 0}, "task.unseen_negatives goes with model.loss='bpr'"),
        ({'model.loss': 'direct_au'}, "task.unseen_negatives goes with model.loss='bpr'"),
        ({'task.valid_share': 0.0, 'train.patience': 2}, 'nothing to be patient for'),
        ({'train.microbatches': 2}, "a graph's propagation does not go with train.microbatches"),
        ({'optim.table': 'sparse_adam'}, 'optim.table=sparse_adam'),
        ({'task.split': 'half'}, "task.split='half' is not one of"),
    ],
)
def test_mistakes_found_before_anything_is_read(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        check(experiment(tmp_path, **changes))


@pytest.mark.parametrize(
    ('task', 'message'),
    [
        ({'windows': 'pairs'}, "trains on task.windows='last', 'all' or 'cuts', not 'pairs'"),
        ({'split': 'random'}, "task.split='random' takes single events out of their order"),
        ({'by_user': True}, "task.by_user is for task.windows='pairs'"),
    ],
)
def test_a_sequence_model_has_no_pairs(tmp_path, task, message):
    given = experiment(tmp_path)
    other = dataclasses.replace(given, model=sasrec.Config(), task=next_item.Config(**task))
    with pytest.raises(UserError, match=message):
        check(other)


def test_a_given_split_of_ones_own_table(tmp_path):
    path = tmp_path / 'edges.csv'
    rng = np.random.default_rng(0)
    lines = [
        f'{u},{i},{2 * (rng.random() < 0.2) * (n > 0):.0f}' for n, (u, i) in enumerate(edges())
    ]
    path.write_text('\n'.join(['user,item,part', *lines]) + '\n')
    given = experiment(tmp_path / 'other', **{'task.split': 'given'})
    given.data = Data(log=str(path), time_col='', features='part', data_dir=str(tmp_path / 'data'))
    problem = given.task.open(given, quiet)
    tested = sum(line.endswith(',2') for line in lines)
    test = problem.split.test
    assert (test.stops - test.ends).sum() == tested and len(problem.split.valid)
    assert splits.PART in problem.source.features
