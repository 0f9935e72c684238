"""The parts of a table: its file, statistics, the arithmetic check, cells, and the text formats."""

import copy
import csv
import dataclasses
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from flax import nnx

from jaxrec import config
from jaxrec.errors import UserError
from jaxrec.evaluation import rank_metrics
from jaxrec.experiment import applied
from jaxrec.paper import adopt, grid, hashes, plausible, readme, spec, statistics, text
from jaxrec.paper import cells as cells_lib
from jaxrec.paper.spec import Column, Ordering, Published, Row, Table

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'experiments' / 'tables').glob('*.py'))
TABLE_FILE = ROOT / 'experiments' / 'tables' / 'x.py'  # need not be there


def table(**changes):
    settings = {
        'title': 'A table & more',
        'caption': 'Of nothing.',
        'columns': (Column('Data 1', ('HR@10', 'NDCG@10'), {'data.dataset': 'synthetic'}),),
        'rows': tuple(Row(name, 'experiments/quickstart.py') for name in ('base', 'good', 'same')),
        'baseline': 'base',
        'published': (
            Published(
                'theirs',
                'a paper',
                '[paper]',
                {'Data 1': {'HR@5': 0.1, 'NDCG@5': 0.06, 'HR@10': 0.12, 'NDCG@10': 0.09}},
                beside='base',
            ),
        ),
        'orderings': (
            Ordering('good', 'base', 'a lot', 'a paper', ('HR@10',)),
            Ordering('base', 'good', 'a bit', 'a paper', ('HR@10',)),
            Ordering('same', 'base', 'hardly', 'a paper', ('HR@10',)),
        ),
    }
    return Table(**{**settings, **changes})


def record(ranks, *, data='d' * 64, protocol='full', code='c'):
    """A stored cell whose users have these ranks, counted from 0: [seeds, users]."""
    seeds = {}
    for seed, greater in enumerate(ranks):
        values = rank_metrics.per_example(greater, np.zeros_like(greater), (5, 10))
        seeds[str(seed)] = {
            'metrics': rank_metrics.mean(values),
            'kept': {
                'greater': cells_lib.pack(greater),
                'ties': cells_lib.pack(np.zeros_like(greater)),
            },
            'code': code,
        }
    return {
        'format': cells_lib.FORMAT,
        'config': {},
        'hashes': {'config': 'k', 'data': data},
        'protocol': {
            'name': protocol,
            'filter_seen': True,
            'cutoffs': [5, 10],
            'data_split': 'leave-one-out',
        },
        'split': 'test',
        'unit': 'user',
        'seeds': seeds,
    }


@pytest.fixture
def stored():
    return make_stored()


def make_stored():
    """The table, its cells, and records of them: 'good' is better, 'same' is not."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 40, (3, 400))
    made = {'base': base, 'good': np.maximum(base - 8, 0), 'same': base.copy()}
    made['same'][:, :10] = rng.permutation(made['same'][:, :10], axis=1)
    cells = spec.cells(table(), TABLE_FILE)
    return table(), cells, {cell.key: record(made[cell.row]) for cell in cells}, made


# ---- statistics


def test_interval_is_students():
    mean, half = statistics.interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)  # t(2 degrees), sd .1
    assert statistics.interval([0.5]) == (0.5, None)


def test_paired_t_by_hand():
    """d = 1, 1, 0, 2: mean 1, sd sqrt(2/3), t = 1 / (.8165 / 2) = 2.4495 with 3 degrees."""
    found = statistics.paired(np.array([2.0, 3, 1, 4]), np.array([1.0, 2, 1, 2]))
    assert found['difference'] == 1
    assert found['p'] == pytest.approx(0.0917, abs=2e-4)
    half = 3.182446 * (2 / 3) ** 0.5 / 2
    assert found['low'] == pytest.approx(1 - half, rel=1e-5)
    assert found['high'] == pytest.approx(1 + half, rel=1e-5)
    same = statistics.paired(np.ones(5), np.ones(5))
    assert same['p'] == 1 and same['difference'] == 0


def test_bootstrap_agrees_with_t_on_many_users_and_is_reproducible():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, 5000) / 2, rng.integers(0, 2, 5000) / 2
    b[:80] = 0
    boot, again = (statistics.paired(a, b, 'bootstrap') for _ in range(2))
    t = statistics.paired(a, b)
    assert boot == again
    for name in ('low', 'high'):
        assert boot[name] == pytest.approx(t[name], abs=6e-4)
    assert boot['p'] == pytest.approx(t['p'], abs=0.03)
    assert statistics.paired(a + 0.1, a, 'bootstrap')['p'] < 1e-3


@pytest.mark.parametrize('weighted', [False, True])
def test_bootstrap_is_the_slow_one(weighted):
    """Drawing how often each distinct value (and weight) comes is drawing users."""
    rng = np.random.default_rng(2)
    d, w = rng.choice([0.0, 0.5, -1.0], 50), rng.integers(1, 6, 50).astype(float)
    drawn = np.random.default_rng(3).integers(0, 50, (20_000, 50))
    w = w if weighted else np.ones(50)
    slow = (w * d)[drawn].sum(1) / w[drawn].sum(1)
    fast = statistics._resampled_means(d, w if weighted else None, 20_000)
    np.testing.assert_allclose(fast.mean(), slow.mean(), atol=5e-3)
    np.testing.assert_allclose(fast.std(), slow.std(), rtol=0.03)


def weighted_users(seed=4, users=300):
    """Values of two models, the second a bit worse, and weights that go with them."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 30, users).astype(float)
    a = rng.random(users) + weights / 100
    return a, a - 0.02 + 0.2 * rng.normal(size=users), weights


def test_paired_with_weights_is_the_ratio_of_two_sums():
    """Difference sum(w d) / sum(w); variance n / (n - 1) * sum(w^2 (d - D)^2) / sum(w)^2."""
    from scipy import stats

    a, b, w = weighted_users()
    found, n = statistics.paired(a, b, weights=w), len(a)
    difference = sum(w * (a - b)) / sum(w)
    variance = n / (n - 1) * sum(w**2 * (a - b - difference) ** 2) / sum(w) ** 2
    half = stats.t.ppf(0.975, n - 1) * variance**0.5
    p = 2 * stats.t.sf(abs(difference) / variance**0.5, n - 1)
    want = {'difference': difference, 'low': difference - half, 'high': difference + half, 'p': p}
    assert found == pytest.approx(want, rel=1e-9)
    assert 1e-6 < p < 0.2  # neither end of the scale hides a mistake
    boot = statistics.paired(a, b, 'bootstrap', weights=w)
    assert boot['difference'] == found['difference']
    for name in ('low', 'high'):
        assert boot[name] == pytest.approx(found[name], abs=0.03 * half * 2)


def test_weights_that_are_all_the_same_are_none():
    a, b, w = weighted_users()
    for test in ('t', 'bootstrap'):
        plain = statistics.paired(a, b, test)
        assert statistics.paired(a, b, test, weights=np.full(len(w), 0.1)) == plain
        assert statistics.paired(a, b, test, weights=w) != plain


def test_the_size_of_weights_does_not_matter_and_who_has_none_hardly():
    a, b, w = weighted_users()
    found = statistics.paired(a, b, weights=w)
    assert statistics.paired(a, b, weights=7 * w) == pytest.approx(found, rel=1e-9)
    more = [np.append(x, y) for x, y in ((a, [9.0, -9.0]), (b, [0.0, 0.0]), (w, [0.0, 0.0]))]
    widened = statistics.paired(*more[:2], weights=more[2])  # two degrees of freedom more
    assert widened == pytest.approx(found, rel=1e-2)
    same = statistics.paired(a, a, weights=w)
    assert same == {'difference': 0.0, 'low': 0.0, 'high': 0.0, 'p': 1.0}


def test_holm_by_hand():
    """Smallest times 4, next times 3 .., never falling."""
    found = statistics.holm({'a': 0.01, 'b': 0.04, 'c': 0.03, 'd': 0.005})
    assert found == pytest.approx({'d': 0.02, 'a': 0.03, 'c': 0.06, 'b': 0.06})
    assert statistics.holm({'a': 0.9, 'b': 0.8}) == {'b': 1.0, 'a': 1.0}
    assert statistics.holm({}) == {}


# ---- the arithmetic check


def test_a_real_run_is_always_plausible():
    for seed in range(20):
        ranks = np.random.default_rng(seed).geometric(0.02, 3000)
        values = {}
        for k in (1, 5, 10, 20):
            values[f'HR@{k}'] = round(float((ranks <= k).mean()), 4)
            values[f'NDCG@{k}'] = round(float(((ranks <= k) / np.log2(ranks + 1)).mean()), 4)
        assert plausible.problems(values) == []


def test_what_cannot_be_is_found():
    good = {'HR@5': 0.1, 'NDCG@5': 0.06, 'HR@10': 0.15, 'NDCG@10': 0.076}
    assert plausible.problems({**good, 'HR@10 macro': 0.5}) == []
    assert plausible.problems({**good, 'NDCG@10': 0.0785})  # more than .05 / log2(7) = .0178
    assert plausible.problems({**good, 'NDCG@10': 0.074})  # less than .05 / log2(11) = .0145
    assert plausible.problems({**good, 'HR@10': 0.09, 'NDCG@10': 0.06})  # the hit rate falls
    assert plausible.problems({'HR@10': 0.1, 'NDCG@10': 0.11})  # above the hit rate
    assert plausible.problems({'HR@10': 0.1, 'NDCG@10': 0.0281})  # below .1 / log2(11) = .0289
    assert plausible.problems({'HR@1': 0.05, 'NDCG@1': 0.04})  # equal at 1
    assert plausible.problems({'HR@10': 1.2})
    assert plausible.problems({'HR@10': 0.1, 'MRR': 5}) == []


# ---- table files


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_every_table_file_loads(path, mesh):
    mesh(1, 1)
    made = spec.load(path)
    source = path.read_text()
    assert f'--table=experiments/tables/{path.name}' in source
    cells = spec.cells(made, path)
    assert len({cell.key for cell in cells}) == len(cells)
    sizes = {
        'item': 100,
        'user': 30,
        'node': 50,
        'feature': 20,
        'tag': 2,
        'class': 3,
        'table': 90,
        'factor': 10,
        'label': 8,
        'text': 16,
    }
    distinct = {repr(cell.experiment.model): cell.experiment.model for cell in cells}
    for model in distinct.values():
        wants = model.inputs()
        of_fields = {f'feature.{name}': 1 for name in wants.features}
        of_fields |= {f'label.{name}': n for n, name in enumerate(wants.labels or 'abcdefgh')}
        nnx.eval_shape(lambda m=model, n=of_fields: m.make({**sizes, **n}, rngs=nnx.Rngs(0)))
    for cell in cells:
        for value in cell.overrides.values():  # they go through the command line
            assert isinstance(value, str | int | float | tuple)
    empty = grid.build(made, cells, {})
    assert len(empty.missing) == len(cells)
    for render in (text.markdown, text.latex, text.comma_separated):
        assert render(empty)


def test_published_values_that_cannot_be_are_flagged():
    """Those of the notes on these papers, and one more that is off by the last digit."""
    path = ROOT / 'experiments' / 'tables' / 'cl4srec.py'
    made = spec.load(path)
    flagged = {
        (line.name, column)
        for line in grid.build(made, spec.cells(made, path), {}).lines
        for column in line.problems
    }
    assert flagged == {
        ('SASRec, FEARec line', 'Beauty'),
        ('CL4SRec, FEARec line', 'Sports'),
        ('CoSeRec, FEARec line', 'ML-1M'),
        ('FEARec, FEARec line', 'ML-1M'),
        ('SASRec, MCLRec line', 'Beauty'),
        ('SASRec, MCLRec line', 'Sports'),
    }


@pytest.mark.parametrize(
    ('changes', 'error'),
    [
        ({'baseline': 'none'}, "baseline 'none' is not a row"),
        ({'protocol': 'uniform'}, 'is under protocol name=full, the table under uniform'),
        (
            {
                'columns': (
                    Column('Data 1', ('HR@10',)),
                    Column('Data 2', ('HR@10',), {'task.filter_seen': False}),
                )
            },
            'base / Data 2 is under protocol filter_seen=False, the table under True',
        ),
        (
            {'rows': tuple(Row(n, 'experiments/quickstart.py') for n in ('base', 'a, b'))},
            'without commas',
        ),
        ({'rows': (Row('base', 'experiments/none.py'),)}, 'in no folder above it'),
        (
            {'rows': (Row('base', 'experiments/quickstart.py', {'model.depth': 1}),)},
            'no field model.depth',
        ),
        (
            {'rows': (Row('base', 'experiments/quickstart.py', {'model.dim': 'x'}),)},
            "model.dim='x' is not int",
        ),
        ({'rows': (Row('base', {'Data 2': 'x.py'}),)}, "no experiment for column 'Data 1'"),
        ({'columns': (Column('Data 1', ('HR@11',)),)}, 'does not measure HR@11'),
        (
            {'columns': (Column('Data 1', ('Coverage@10',)),)},
            'Coverage@10 has no values of single users',
        ),
        ({'published': (Published('x', '', '', {}),)}, 'needs source and tag'),
        ({'orderings': (Ordering('base', 'base', '', '', among=('x',)),)}, 'grouping, group'),
        ({'published': (Published('x', 's', 't', {'D': {}}),)}, "values for 'D', not a column"),
        ({'orderings': (Ordering('x', 'base', '', ''),)}, "names 'x', not a row"),
        ({'orderings': (Ordering('base', 'base', '', '', columns=('D',)),)}, "'D', not a column"),
    ],
)
def test_mistakes_of_a_table_file_are_one_line(changes, error):
    changes = {'orderings': (), 'published': (), **changes}
    if changes.get('baseline') != 'none' and 'rows' not in changes:
        changes['rows'] = (Row('base', 'experiments/quickstart.py'),)
    made = table(**changes)
    with pytest.raises(UserError, match=error.replace('.', r'\.')):
        spec._check(made, 'x.py')
        spec.cells(made, TABLE_FILE)


# ---- cells


def test_pack_is_lossless_small_and_the_same_every_time():
    rng = np.random.default_rng(0)
    ranks = rng.geometric(0.01, 10_000).astype(np.int32)
    ranks[5] = np.iinfo(np.int32).max
    packed = cells_lib.pack(ranks)
    np.testing.assert_array_equal(cells_lib.unpack(packed), ranks)
    assert cells_lib.pack(ranks.astype(np.int64)) == packed
    assert len(packed) < 4 * len(ranks) / 2
    assert cells_lib.unpack(cells_lib.pack(np.zeros(0, np.int32))).shape == (0,)


@pytest.mark.parametrize('dtype', ['int64', 'float64', 'float32'])
def test_pack_keeps_what_int32_cannot_hold(dtype):
    values = np.array([0.25, -3e9, 2.0**40, 0.1]).astype(dtype)
    found = cells_lib.unpack(cells_lib.pack(values))
    np.testing.assert_array_equal(found, values)
    assert found.dtype == ('int64' if dtype == 'int64' else 'float64')
    if dtype != 'int64':
        np.testing.assert_array_equal(cells_lib.unpack(cells_lib.pack(values[:0])), [])


def a_cell(row=0, **changes):
    """A cell of the table above, with these fields of its experiment."""
    cell = spec.cells(table(), TABLE_FILE)[row]
    return dataclasses.replace(cell, experiment=applied(cell.experiment, changes))


def test_values_of_users_share_ties():
    made = record([np.array([0, 9, 30])])
    made['seeds']['0']['kept']['ties'] = cells_lib.pack(np.array([0, 1, 0]))
    with pytest.raises(UserError, match=r'HR@10 of seed 0 is 0\.66.*, and 0\.500000 by .* damaged'):
        cells_lib.per_example(made, a_cell(), 'HR@10', ['0'])
    made['seeds']['0']['metrics']['HR@10'] = 0.5
    values, weights, _ = cells_lib.per_example(made, a_cell(), 'HR@10', ['0'])
    np.testing.assert_allclose(values, [[1, 0.5, 0]])
    np.testing.assert_array_equal(weights, [1, 1, 1])
    with pytest.raises(UserError, match='base / Data 1: Coverage@10 has no values of single users'):
        cells_lib.per_example(made, a_cell(), 'Coverage@10', ['0'])


def test_values_of_users_with_several_targets():
    owner, greater = np.array([0, 0, 1]), np.array([0, 30, 4])
    made = record([greater])
    made['seeds']['0']['kept']['owner'] = cells_lib.pack(owner)
    made['seeds']['0']['metrics']['Recall@10'] = 0.75
    cell = a_cell(**{'task.split': 'users', 'task.targets': 'all'})
    values, weights, _ = cells_lib.per_example(made, cell, 'Recall@10', ['0'])
    np.testing.assert_array_equal(values, [[0.5, 1]])
    np.testing.assert_array_equal(weights, [1, 1])


def test_a_finished_cell_says_what_changed(stored):
    _, cells, records, _ = stored
    cell = cells[0]
    now = cells_lib.Wanted(hashes.config_hash(cell.experiment), 'c', 'd' * 64)
    old = records[cell.key]
    old['hashes']['config'] = now.config
    old['config'] = hashes.config_record(cell.experiment)

    def why(now=now, seeds=(0, 1, 2), accept=()):
        return cells_lib.to_run(old, now, seeds, accept, cell)

    assert why() == ([], '')
    assert why(seeds=(0, 1)) == ([], '')
    assert why(seeds=range(5)) == ([3, 4], 'seeds 3, 4 are missing')
    assert cells_lib.to_run(None, now, [0], (), cell) == ([0], 'not run yet')
    code = dataclasses.replace(now, code='other')
    assert why(code) == ([0, 1, 2], 'changed: code (c, now other)')
    assert why(code, accept=['code']) == ([], '')
    data = dataclasses.replace(now, data='e' * 64)
    assert why(data)[1] == f'changed: data ({"d" * 12}, now {"e" * 12})'
    wider = copy.deepcopy(cell.experiment)
    wider.model.dim = 128
    cell = dataclasses.replace(cell, experiment=wider)
    config = dataclasses.replace(now, config=hashes.config_hash(wider))
    assert why(config)[1] == 'changed: config (model.dim=64, now 128)'


def test_config_hash_sees_what_matters():
    experiment = a_cell().experiment
    first = hashes.config_hash(experiment)
    moved = {'train.seed': 7, 'data.source': 'elsewhere', 'train.log_every': 1, 'mesh.model': 4}
    assert hashes.config_hash(applied(experiment, moved)) == first
    assert not any(hashes.matters(name, experiment) for name in moved)
    for name, value in {
        'optim.eps': 1e-7,
        'task.filter_seen': False,
        'task.cutoffs': (3,),
        'train.epochs': 3,
        'data.min_user': 2,
    }.items():
        assert hashes.matters(name, experiment)
        assert hashes.config_hash(applied(experiment, {name: value})) != first
    record = json.loads(json.dumps(hashes.config_record(experiment)))
    assert record['model.type'] == 'jaxrec.models.sasrec:Config'
    assert record['task.type'] == 'jaxrec.tasks.next_item:Config'


def test_code_files_are_those_a_result_depends_on():
    files = hashes.code_files('jaxrec.tasks.next_item', 'jaxrec.models.sasrec')
    assert {
        'models/sasrec.py',
        'losses/softmax.py',
        'objectives/contrast.py',
        'training/state.py',
        'training/loop.py',
        'data/packed.py',
        'data/splits.py',
        'evaluation/run.py',
        'evaluation/ranking.py',
        'evaluation/rank_metrics.py',
        'tasks/next_item.py',
    } <= set(files)
    others = {'models/kuaiformer.py', 'tasks/click.py', 'table.py', 'paper/grid.py', 'recommend.py'}
    assert not others & set(files)
    assert not any(name.startswith(('benchmarks/', 'datasets/')) for name in files)
    nodes = set(hashes.code_files('jaxrec.tasks.nodes', 'jaxrec.models.gcn'))
    assert {'tasks/nodes.py', 'models/gcn.py', 'nn/propagate.py', 'data/graph.py'} <= nodes
    assert not {'models/sasrec.py', 'tasks/click.py'} & nodes


def test_exempt_files_are_there_and_are_imported():
    """A file that was renamed or that nothing imports any more is no exemption."""
    for name in hashes.EXEMPT:
        assert (hashes.PACKAGE / f'{name}.py').is_file(), name
    for name in hashes._EXEMPT_BELOW:
        assert (hashes.PACKAGE / name).is_dir(), name
    package = hashes.PACKAGE.rglob('*.py')
    imported = {module for file in package for module in hashes._imports(file)}
    for name in hashes.EXEMPT:
        assert f'jaxrec.{name.replace("/", ".")}' in imported, name


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's code, which the hashes are taken of."""
    copied = tmp_path / 'jaxrec'
    shutil.copytree(hashes.PACKAGE, copied, ignore=shutil.ignore_patterns('__pycache__'))
    experiment = a_cell().experiment
    before = hashes.code_hash(experiment)
    monkeypatch.setattr(hashes, 'PACKAGE', copied)
    assert hashes.code_hash(experiment) == before  # wherever it lies
    return copied, lambda: hashes.code_hash(experiment)


def test_code_hash_sees_code(package):
    folder, code_hash = package
    before = code_hash()
    changes = {  # a line more, and another line
        'losses/softmax.py': lambda text: text + '\nX = 1\n',
        'evaluation/rank_metrics.py': lambda text: text.replace(
            '    return ', '    return not ', 1
        ),
    }
    for name, change in changes.items():
        kept = (folder / name).read_text()
        (folder / name).write_text(change(kept))
        assert code_hash() != before, name
        (folder / name).write_text(kept)
    for name in ('models/mmoe.py', 'evaluation/report.py', 'cli.py', 'datasets/synthetic.py'):
        path = folder / name
        path.write_text(path.read_text() + '\nX = 1\n')
    assert code_hash() == before
    (folder / 'losses' / 'softmax.py').rename(folder / 'losses' / 'exact.py')  # now not found
    assert code_hash() != before


def test_code_hash_does_not_see_words(package):
    """Docstrings of modules, classes and functions, comments, empty lines; strings are code."""
    folder, code_hash = package
    path = folder / 'losses' / 'softmax.py'
    plain = (
        '"""A."""\n\n\ndef f(x):\n    """Of x."""\n    return x + 1\n\n\nclass C:\n    """C."""\n'
    )
    found = {}
    for name, source in {
        'plain': plain,
        'words': plain.replace('A.', 'Other\n\nwords.').replace('Of x.', 'Of\n    y.'),
        'class': plain.replace('C."""', 'Another."""\n'),
        'comments': plain.replace('    return', '    # why\n\n    return'),
        'code': plain.replace('x + 1', 'x + 2'),
        'string': plain.replace('return x + 1', 'return """Of x."""'),
        'indented': plain.replace('    return x + 1', '    if x:\n        return x + 1'),
    }.items():
        path.write_text(source)
        found[name] = code_hash()
    same = {name for name, value in found.items() if value == found['plain']}
    assert same == {'plain', 'words', 'class', 'comments'}


# ---- adoption


OLD = {new: old for old, new in config.RENAMED.items() if ',' not in new and '(' not in new}
# of the task; there was one task
NEW_FIELDS = (
    'targets',
    'prefix_share',
    'periods',
    'type',
    'precision',
    'domain',
    'in_domain',
    'valid_seen',
    'support_seed',
    'overlap',
    'shuffled',
    'by_user',
)
NEW_OF_IN_BATCH = (
    'similarity',
    'temperature',
    'bank',
    'batch_negatives',
    'warmup',
    'prototypes',
    'routing',
    'softness',
    'hardness',
    'apart',
)


def first_format(cell, ranks, **config_changes):
    """A record as it was before tasks: old names of fields, one kind of users, 'ranks'."""
    record_ = record(ranks)
    fields = hashes.config_record(cell.experiment)
    later = ('train.grow', 'train.start_with')
    fields = {OLD.get(n, n): v for n, v in fields.items() if n not in later}
    for name in (
        *(f'task.{n}' for n in NEW_FIELDS),
        'train.start_from',
        'train.eval_steps',
        'task.start_table',
        'data.domain_col',
        'data.text_col',
        'data.text_columns',
        'model.contrast',
    ):
        fields.pop(name)
    texts = 'task.texts.', 'model.items.'
    later = tuple(f'model.in_batch.{n}' for n in NEW_OF_IN_BATCH)
    fields = {
        n: v
        for n, v in fields.items()
        if not n.startswith(('model.multi_signal.', 'model.seq2seq.', *texts, *later))
    }
    assert not any(name.startswith('task.') for name in fields)
    fields |= {'train.metric': 'NDCG@10', 'data.log': '', **config_changes}
    protocol = dict(record_['protocol'])
    for run in record_['seeds'].values():
        run |= {
            'ranks': run.pop('kept'),
            'buckets': {'head': {'users': 3, 'HR@10': 0.5}, 'tail': {'users': 0}},
            'interests': {'similarity': 0.25},
            'git': {'commit': 'f' * 40},
            'code': 'old',
        }
    return {
        'format': 1,
        'row': cell.row,
        'column': cell.column,
        'command': 'as it was called',
        'config': json.loads(json.dumps(fields)),
        'hashes': record_['hashes'],
        'split': 'test',
        'data_split': protocol.pop('data_split'),
        'protocol': protocol,
        'users': 400,
        'unreachable': 0.125,
        'cold': 0.5,
        'baselines': {'markov': {'HR@10': 0.1}},
        'seeds': record_['seeds'],
    }


def test_a_record_of_the_first_format_is_adopted(tmp_path):
    cell, ranks = a_cell(), np.random.default_rng(0).integers(0, 40, (2, 400))
    old = first_format(cell, ranks)
    cells_lib.write(tmp_path, cell, old)
    with pytest.raises(UserError, match='has format 1, this version reads 2; .* --adopt --why'):
        cells_lib.read(tmp_path, cell)
    made = adopt.adopted(tmp_path, cell, 'only names')
    cells_lib.write(tmp_path, cell, made)
    found = cells_lib.read(tmp_path, cell)
    # It is what this code would have stored: finished, under the hashes of today.
    now = cells_lib.Wanted(
        hashes.config_hash(cell.experiment), hashes.code_hash(cell.experiment), 'd' * 64
    )
    assert cells_lib.to_run(found, now, [0, 1], (), cell) == ([], '')
    assert found['config'] == json.loads(json.dumps(hashes.config_record(cell.experiment)))
    assert found['command'].startswith('python -m jaxrec.train --config=experiments/quickstart.py')
    assert (found['unit'], found['examples']) == ('user', 400)
    assert found['protocol'] == {**old['protocol'], 'data_split': 'leave-one-out'}
    assert found['references'] == old['baselines']
    run = found['seeds']['1']
    assert run['groups'] == {
        'popularity': {'head': {'examples': 3, 'HR@10': 0.5}, 'tail': {'examples': 0}}
    }
    interests = {'similarity': 0.25}
    assert run['details'] == {'unreachable': 0.125, 'cold': 0.5, 'interests': interests}
    # What it was made by, and its numbers, stay.
    assert run['git'] == {'commit': 'f' * 40}
    rounded = json.loads(cells_lib.to_text(old['seeds']['1']['metrics']))
    assert run['metrics'] == rounded
    values, *_ = cells_lib.per_example(found, cell, 'HR@10', ['0', '1'])
    np.testing.assert_array_equal(values, ranks < 10)
    # And all that was done is noted.
    (note,) = found['adopted']
    assert note == {'why': 'only names', 'config': 'k', 'code': {'0': 'old', '1': 'old'}}
    assert adopt.adopted(tmp_path, cell, 'once more') == found  # there is nothing to note
    found['seeds']['1']['code'] = 'other'
    cells_lib.write(tmp_path, cell, found)
    again = adopt.adopted(tmp_path, cell, 'once more')
    assert [n['why'] for n in again['adopted']] == ['only names', 'once more']
    assert again['adopted'][1]['code'] == {'0': now.code, '1': 'other'}
    assert again['seeds'] == made['seeds']


@pytest.mark.parametrize(
    ('changed', 'told'),
    [
        ({'optim.eps': 1e-7}, 'optim.eps=1e-07, the table now has 1e-08'),
        ({'data.windows': 'all'}, "task.windows='all', the table now has 'last'"),
        ({'eval.filter_seen': False}, 'task.filter_seen=False, the table now has True'),
        ({'train.metric': 'HR@10'}, "train.metric='HR@10', the table now has"),
        ({'model.depth': 3}, 'model.depth=3, the table now has None'),  # a field that is gone
    ],
)
def test_a_record_that_means_something_else_is_not_adopted(tmp_path, changed, told):
    cell = a_cell()
    cells_lib.write(tmp_path, cell, first_format(cell, np.zeros((1, 9), int), **changed))
    before = cells_lib.path_of(tmp_path, cell).read_bytes()
    with pytest.raises(UserError, match=f'{told}.*: that is another cell'):
        adopt.adopted(tmp_path, cell, 'names')
    assert cells_lib.path_of(tmp_path, cell).read_bytes() == before


def test_what_was_done_without_a_field_is_its_default(tmp_path):
    """A field that is new, and that the table sets: another cell. At its default: the same."""
    cell = a_cell(**{'task.split': 'temporal', 'task.targets': 'all'})
    old = first_format(cell, np.zeros((1, 9), int))
    cells_lib.write(tmp_path, cell, old)
    with pytest.raises(UserError, match="task.targets=None, the table now has 'all'"):
        adopt.adopted(tmp_path, cell, 'names')
    first = a_cell(**{'task.split': 'temporal'})
    assert adopt.adopted(tmp_path, first, 'names')['config']['task.targets'] == 'first'


def test_a_tiny_setting_is_stored_as_it_is(tmp_path):
    """And a cell that was stored when settings were rounded is still the same."""
    cell = a_cell(**{'optim.learning_rate': 1e-30})
    cells_lib.write(tmp_path, cell, first_format(cell, np.zeros((1, 9), int)))
    record = json.loads(cells_lib.path_of(tmp_path, cell).read_text())
    assert record['config']['optim.learning_rate'] == 1e-30
    record['config']['optim.learning_rate'] = 0.0
    cells_lib.path_of(tmp_path, cell).write_text(json.dumps(record))
    assert adopt.adopted(tmp_path, cell, 'names')['config']['optim.learning_rate'] == 1e-30


def test_a_contrastive_term_is_adopted_under_its_number(tmp_path):
    from jaxrec.models import sasrec
    from jaxrec.objectives.contrast import Contrast

    cell = a_cell()
    for weight, terms in ((0.1, (Contrast(weight=0.1),)), (0.0, ())):
        old = first_format(cell, np.zeros((1, 9), int))
        fields = dataclasses.asdict(Contrast(weight=weight))
        del fields['objective']  # which came later
        old['config'] |= {f'model.contrast.{n}': v for n, v in fields.items()}
        old['config'] |= {'model.type': 'jaxrec.models.cl4srec:Config'}
        old['config'] = json.loads(json.dumps(old['config']))
        cells_lib.write(tmp_path, cell, old)
        model = dataclasses.replace(cell.experiment.model, contrast=terms)
        assert isinstance(model, sasrec.Config)
        experiment = dataclasses.replace(cell.experiment, model=model)
        with_terms = dataclasses.replace(cell, experiment=experiment)
        found = adopt.adopted(tmp_path, with_terms, 'names')['config']
        assert found['model.type'] == 'jaxrec.models.sasrec:Config'
        assert found.get('model.contrast.0.weight', 0.0) == weight
        if terms:  # the plain model is not it
            with pytest.raises(UserError, match=r'model.contrast.*another cell'):
                adopt.adopted(tmp_path, cell, 'names')


# ---- the grid and its texts


def test_marks_stars_and_verdicts(stored):
    made, cells, records, ranks = stored
    built = grid.build(made, cells, records)
    lines = {line.name: line for line in built.lines}
    assert [line.name for line in built.lines] == ['base', 'theirs', 'good', 'same']
    head = ('Data 1', 'HR@10')
    base, good, same = (lines[name].values[head] for name in ('base', 'good', 'same'))
    assert good.mean == pytest.approx((ranks['good'] < 10).mean())
    assert good.mark == 'best' and good.star == '+'
    assert same.star == '' and same.mark == base.mark == ''  # the second is no better than the next
    assert base.versus is None and good.versus['adjusted'] >= good.versus['p']
    assert [v.text for v in built.verdicts] == [
        'confirmed',
        'the opposite',
        'no significant difference',
    ]
    assert lines['theirs'].problems['Data 1']
    worst = {**records, cells[1].key: record(ranks['base'] + 8)}
    assert grid.build(made, cells, worst).lines[2].values[head].star == '-'


def test_where_every_seed_holds_out_its_own_examples_each_is_tested_once():
    """By its mean over the seeds that hold it out; of two cells, the examples that both have."""
    among = ('kind', 'odd')
    made = table(
        columns=(Column('Data 1', ('MAE',), {'task.split_seed': -1}),),
        rows=tuple(Row(name, 'experiments/cdrnp_ml1m.py') for name in ('base', 'good')),
        published=(),
        protocol='cold-start ratings',
        orderings=(
            Ordering('good', 'base', 'a lot', 'a'),
            Ordering('good', 'base', 'a lot', 'a', among=among),
        ),
    )
    cells, rng = spec.cells(made, TABLE_FILE), np.random.default_rng(0)
    numbers = [rng.choice(90, n, replace=False) for n in (50, 70, 60)]
    records, by_number = {}, {'base': {}, 'good': {}}
    for cell in cells:
        runs = {}
        for seed, held in enumerate(numbers):
            values = rng.random(len(held)) - 0.2 * (cell.row == 'good')
            for number, value in zip(held.tolist(), values.tolist(), strict=True):
                by_number[cell.row].setdefault(number, []).append(value)
            odd = (held % 2 == 1) & (seed > 0)  # as if nobody of seed 0 were
            kept = {'values/MAE': values, 'numbers': held, 'members/kind/odd': odd}
            kept = {name: cells_lib.pack(x) for name, x in kept.items() if seed or name[0] != 'm'}
            groups = {'kind': {'odd': {'examples': int(odd.sum())}} if seed else {}}
            runs[str(seed)] = {'metrics': {'MAE': values.mean()}, 'kept': kept, 'groups': groups}
        records[cell.key] = {
            **record(np.zeros((1, 1), int)),
            'protocol': {'name': 'cold-start ratings', 'split_seed': 'train.seed'},
            'unit': 'row',
            'seeds': runs,
        }

    def expected(chosen):
        return statistics.paired(
            *(np.array([np.mean(by_number[row][n]) for n in chosen]) for row in ('good', 'base'))
        )

    built, held = grid.build(made, cells, records), sorted(by_number['good'])
    value, wanted = built.lines[1].values['Data 1', 'MAE'], expected(held)
    assert {name: value.versus[name] for name in wanted} == pytest.approx(wanted)
    assert value.star == '-' and len(held) < 180
    of_odd = [n for n in held if n % 2 and any(n in x for x in numbers[1:])]
    all_of_them, some = built.verdicts
    assert all_of_them.examples == len(held) and some.examples == len(of_odd)
    wanted = expected(of_odd)
    assert {name: some.result[name] for name in wanted} == pytest.approx(wanted)
    del records[cells[1].key]['seeds']['2']  # the others of both are tested still
    left = grid.build(made, cells, records).lines[1].values['Data 1', 'MAE'].versus
    assert left['difference'] != pytest.approx(value.versus['difference'])


def test_a_claim_may_be_about_some_examples(stored):
    """Their values alone are tested, and told how many; what cannot be says why."""
    _, cells, records, _ = stored
    some = np.arange(400) < 150
    for record in records.values():
        for run in record['seeds'].values():
            groups = {
                'short': {'examples': 150},
                'long': {'examples': 250},
                'none': {'examples': 0},
            }
            run['groups'] = {'history': groups}
            run['kept']['members/history/short'] = cells_lib.pack(some)

    def built(*among):
        given = table(orderings=(Ordering('good', 'base', 'a lot', 'a', ('HR@10',), among=among),))
        (verdict,) = grid.build(given, cells, records).verdicts
        return verdict

    def mean(cell):
        runs = records[cell.key]['seeds'].values()
        ranks = [cells_lib.unpack(run['kept']['greater'])[some] for run in runs]
        return np.mean([greater < 10 for greater in ranks], axis=0)

    verdict, expected = built('history', 'short'), statistics.paired(mean(cells[1]), mean(cells[0]))
    assert {name: verdict.result[name] for name in expected} == pytest.approx(expected)
    assert verdict.examples == 150 and verdict.text == 'confirmed'
    assert verdict.result['difference'] != pytest.approx(built().result['difference'])
    assert built('history', 'none').text == built('rows', 'x').text == 'no such examples'
    assert built('history', 'long').text == 'not kept'
    for run in records[cells[0].key]['seeds'].values():
        run['kept']['members/history/short'] = cells_lib.pack(~some)
    assert built('history', 'short').text == 'of other examples'


def test_a_claim_may_be_about_some_columns_and_metrics(stored):
    _, cells, records, _ = stored

    def places(**about):
        given = table(orderings=(Ordering('good', 'base', 'a lot', 'a', **about),))
        return [(v.column, v.metric) for v in grid.build(given, cells, records).verdicts]

    everywhere = places()
    assert len(everywhere) > 1 and {column for column, _ in everywhere} == {'Data 1'}
    assert places(columns=('Data 1',)) == everywhere and places(columns=('Data 2',)) == []
    assert places(metrics=everywhere[0][1:]) == everywhere[:1]


def test_where_lower_is_better_the_lowest_is_marked():
    """Of log loss by row: the mark, the star (which says where a value lies), the verdict."""
    names, metrics = ('base', 'good', 'bad'), ('logloss/click', 'GAUC/click')
    made = table(
        columns=(Column('Data 1', metrics),),
        rows=tuple(Row(name, 'experiments/mmoe_kuairand.py') for name in names),
        published=(),
        protocol='click',
        orderings=(
            Ordering('good', 'base', 'a lot', 'a paper'),
            Ordering('bad', 'base', 'a bit', 'a paper'),
        ),
    )
    cells, rng, records = spec.cells(made, TABLE_FILE), np.random.default_rng(0), {}
    base = rng.random(500)
    for cell, shift in zip(cells, (0.0, -0.1, 0.1), strict=True):
        values = base + shift + 0.01 * rng.normal(size=500)
        kept = {f'values/{metric}': cells_lib.pack(values) for metric in metrics}
        runs = {'0': {'metrics': dict.fromkeys(metrics, values.mean()), 'kept': kept, 'code': 'c'}}
        records[cell.key] = {
            **record(np.zeros((1, 1), int)),
            'protocol': {'name': 'click'},
            'unit': 'row',
            'seeds': runs,
        }
    built = grid.build(made, cells, records)
    losses, areas = ([line.values['Data 1', metric] for line in built.lines] for metric in metrics)
    assert [value.mark for value in losses] == ['second', 'best', '']
    assert [value.mark for value in areas] == ['second', '', 'best']
    assert [value.star for value in losses] == [value.star for value in areas] == ['', '-', '+']
    verdicts = {(v.better, v.metric): v.text for v in built.verdicts}
    assert verdicts == {
        ('good', 'logloss/click'): 'confirmed',
        ('good', 'GAUC/click'): 'the opposite',
        ('bad', 'logloss/click'): 'the opposite',
        ('bad', 'GAUC/click'): 'confirmed',
    }
    line = next(x for x in text.markdown(built).splitlines() if x.startswith('| good'))
    assert f'**{text.number(losses[1].mean)}** ▼' in line
    # a claim of so much: .5 - .1 is 10 % below .5, .5 + .1 10 % above, neither is 30 %
    claims = [('good', metrics[0], 0.1), ('good', metrics[0], 0.3)]
    claims += [('bad', metrics[1], 0.1), ('bad', metrics[1], 0.3)]
    orderings = tuple(Ordering(n, 'base', '', 'a paper', (metric,), m) for n, metric, m in claims)
    built = grid.build(dataclasses.replace(made, orderings=orderings), cells, records)
    told = [v.text for v in built.verdicts]
    assert told == ['confirmed', 'less than 30%', 'confirmed', 'less than 30%']
    assert '-0.05' in text.markdown(built) and ' beyond 10% |' in text.markdown(built)
    assert f'| {text.number(areas[1].mean)} ▼' in line


def test_users_weigh_in_tests_what_they_weigh_in_the_metric():
    """Ten heavy users decide: what most users say is not what the table says."""
    made = table(
        columns=(Column('Data 1', ('GAUC/click',)),),
        rows=tuple(Row(name, 'experiments/mmoe_kuairand.py') for name in ('base', 'good')),
        published=(),
        orderings=(),
        protocol='click',
    )
    rng, records = np.random.default_rng(1), {}
    weights = np.where(np.arange(400) < 100, 100.0, 1.0)
    cells = spec.cells(made, TABLE_FILE)
    for cell, gain in zip(cells, (0.0, 0.1), strict=True):
        values = 0.5 + gain * np.where(weights > 1, 1, -1) + 0.05 * rng.normal(size=400)
        kept = {'values/GAUC/click': values, 'weights/GAUC/click': weights}
        mean = np.average(values, weights=weights)
        run = {
            'metrics': {'GAUC/click': mean},
            'kept': {name: cells_lib.pack(value) for name, value in kept.items()},
            'code': 'c',
        }
        records[cell.key] = {
            **record(np.zeros((1, 1), int)),
            'protocol': {'name': 'click'},
            'seeds': {'0': run},
        }
    good = grid.build(made, cells, records).lines[1].values['Data 1', 'GAUC/click']
    base = records[cells[0].key]['seeds']['0']['metrics']['GAUC/click']
    assert good.star == '+' and good.mark == 'best'
    assert good.versus['difference'] == pytest.approx(good.mean - base)


def test_texts(stored):
    made, cells, records, ranks = stored
    built = grid.build(made, cells, records)
    shown = text.markdown(built)
    good = (ranks['good'] < 10).mean(1)
    half = 4.302653 * good.std(ddof=1) / 3**0.5
    value = f'{good.mean():.4f}'.lstrip('0')
    assert f'| good | **{value}** ± {f"{half:.4f}".lstrip("0")} ▲ |' in shown
    assert '| *theirs* [1] ⚠ | .1200 | .0900 |' in shown
    assert 'NDCG@5 to NDCG@10 rises by 0.0300; one run allows 0.0058 to 0.0071' in shown
    assert 'name=full' in shown and 'Data 1 dddddddddddd' in shown and '3 seeds' in shown

    tex = text.latex(built)
    assert rf'good & \textbf{{{value}}}' in tex and r'\toprule' in tex and r'\bottomrule' in tex
    assert r'A table \& more' in tex and r'filter\_seen=True' in tex
    assert not [c for c in tex if ord(c) > 127]

    rows = list(csv.DictReader(io.StringIO(text.comma_separated(built))))
    assert len(rows) == 4 * 2
    (row,) = (r for r in rows if r['row'] == 'good' and r['metric'] == 'HR@10')
    assert float(row['mean']) == pytest.approx(good.mean(), abs=1e-7)
    assert row['seeds'] == '3' and row['mark'] == 'best' and row['data_hash'] == 'd' * 64
    (row,) = (r for r in rows if r['row'] == 'theirs' and r['metric'] == 'HR@10')
    assert row['kind'] == 'published' and 'cannot come from one run' in row['doubt']


def test_missing_cells_leave_their_place(stored):
    made, cells, records, _ = stored
    del records[cells[1].key]
    shown = text.markdown(grid.build(made, cells, records))
    assert '| good | – | – |' in shown and 'Not run yet: good / Data 1' in shown
    assert 'not run' in shown


def test_other_protocols_and_other_data_are_refused(stored):
    made, cells, records, ranks = stored
    other = {**records, cells[1].key: record(ranks['good'], protocol='uniform')}
    with pytest.raises(UserError, match=r'base / Data 1 and good / Data 1 are under different'):
        grid.build(made, cells, other)
    other = {**records, cells[2].key: record(ranks['same'], data='e' * 64)}
    with pytest.raises(UserError, match=r'base / Data 1 and same / Data 1 are of different data'):
        grid.build(made, cells, other)
    here = other[cells[2].key]['hashes']  # with texts, of which the others know nothing
    here['compared'] = other[cells[0].key]['hashes']['data']
    grid.build(made, cells, other)
    other = copy.deepcopy(records)
    other[cells[2].key]['protocol']['cutoffs'] = [5, 10, 20]  # no number depends on these
    grid.build(made, cells, other)


def test_columns_under_protocols_of_their_own():
    """Where the table says so; within a column they are the same."""
    shown = ('HR@10', 'NDCG@10')
    columns = Column('Data 1', shown), Column('Data 2', shown, {'task.filter_seen': False})
    made = table(columns=columns, by_column=True)
    cells, ranks = spec.cells(made, TABLE_FILE), np.arange(12).reshape(3, 4)
    records = {cell.key: record(ranks) for cell in cells}
    for cell in cells:
        records[cell.key]['protocol']['filter_seen'] = cell.column == 'Data 1'
    found = text.markdown(grid.build(made, cells, records))
    assert 'Protocol of Data 1: name=full, filter_seen=True' in found
    assert 'Protocol of Data 2: name=full, filter_seen=False' in found
    records[cells[-1].key]['protocol']['name'] = 'uniform'
    with pytest.raises(UserError, match='are under different protocols'):
        grid.build(made, cells, records)


def test_publishing_never_loses_seeds(stored, tmp_path):
    """Seeds of the same make are put together; fewer of another make do not replace more."""
    _, cells, records, _ = stored
    cell, here, there = cells[0], tmp_path / 'here', tmp_path / 'there'
    record = records[cell.key]
    first, second = sorted(record['seeds'])[:2]

    def only(*seeds, **changed):
        return {**record, 'seeds': {s: {**record['seeds'][s], **changed} for s in seeds}}

    def published():
        return cells_lib.read(there, cell)

    cells_lib.write(here, cell, only(first))
    cells_lib.publish(cell, here, there, ('HR@10',))
    cells_lib.write(here, cell, only(second))
    cells_lib.publish(cell, here, there, ('HR@10',))
    assert published() == json.loads(cells_lib.to_text(only(first, second)))
    cells_lib.write(here, cell, only(first, code='new'))
    with pytest.raises(UserError, match='holds 2 seeds of another config, code or data'):
        cells_lib.publish(cell, here, there, ('HR@10',))
    cells_lib.write(here, cell, only(first, second, code='new'))
    cells_lib.publish(cell, here, there, ('HR@10',))
    assert {run['code'] for run in published()['seeds'].values()} == {'new'}


def test_what_single_users_have_is_published_of_shown_metrics_alone(stored, tmp_path):
    _, cells, records, _ = stored
    cell, here, there = cells[0], tmp_path / 'here', tmp_path / 'there'
    values = np.random.default_rng(0).random(100)
    kept = {
        **records[cell.key]['seeds']['0']['kept'],  # ranks, which every metric follows from
        **{f'values/{name}': cells_lib.pack(values) for name in ('GAUC/like', 'logloss/like')},
        'weights/GAUC/like': cells_lib.pack(np.arange(100.0)),
        'weights/logloss/like': cells_lib.pack(np.arange(100.0)),
        'values/lag': cells_lib.pack(300 * values),  # seconds, of which float32 would move the mean
        'members/rows/clean': cells_lib.pack(values > 0.5),
        'members/rows/twin': cells_lib.pack(values <= 0.5),
    }
    run = {**records[cell.key]['seeds']['0'], 'kept': kept}
    cells_lib.write(here, cell, {**records[cell.key], 'seeds': {'0': run}})
    cells_lib.publish(cell, here, there, ('GAUC/like', 'lag', 'rows/clean'))
    found = cells_lib.read(there, cell)['seeds']['0']['kept']
    lost = {'values/logloss/like', 'weights/logloss/like', 'members/rows/twin'}
    assert kept.keys() - found.keys() == lost
    np.testing.assert_array_equal(cells_lib.unpack(found['members/rows/clean']), values > 0.5)
    told = cells_lib.unpack(found['values/GAUC/like'])
    np.testing.assert_array_equal(told, values.astype(np.float32))
    np.testing.assert_array_equal(cells_lib.unpack(found['weights/GAUC/like']), np.arange(100.0))
    assert found['greater'] == kept['greater'] and found['values/lag'] == kept['values/lag']
    assert len(found['values/GAUC/like']) < 0.6 * len(kept['values/GAUC/like'])


RESULTS = sorted((ROOT / 'results').glob('*/cells'))


@pytest.mark.parametrize('folder', RESULTS, ids=lambda p: p.parent.name)
def test_stored_results_render_to_what_stands_beside_them(folder):
    """Whatever the code is by now: `python -m jaxrec.table --render --results=results`."""
    path = ROOT / 'experiments' / 'tables' / f'{folder.parent.name}.py'
    made = spec.load(path)
    cells = spec.cells(made, path)
    records = {cell.key: cells_lib.read(folder.parent, cell) for cell in cells}
    records = {key: record for key, record in records.items() if record}
    assert len(records) == len(list(folder.iterdir()))  # no cell of a row that is gone
    shown = text.markdown(grid.build(made, cells, records))
    assert (folder.parent / 'table.md').read_text() == shown
    for cell in cells:
        if cell.key in records:  # bytes that only a result changes
            stored = cells_lib.path_of(folder.parent, cell).read_text()
            assert cells_lib.to_text(records[cell.key]) == stored
            for run in records[cell.key]['seeds'].values():
                del run['kept']  # text that may by chance hold any word
            told = json.dumps(records[cell.key])
            assert '/root/' not in told and '/home/' not in told


# The README ---------------------------------------------------------------------------------------


def test_readme_shows_what_is_stored():
    """Its results are those of results/, to the letter."""
    if not (ROOT / 'results').is_dir():
        pytest.skip('no results/ here')
    grids = {}
    for file in FILES:
        folder, shown = ROOT / 'results' / file.stem, spec.load(file)
        if shown.shown and (folder / 'cells').is_dir():
            cells = spec.cells(shown, file)
            stored = {cell.key: cells_lib.read(folder, cell) for cell in cells}
            records = {key: record for key, record in stored.items() if record}
            grids[file.stem] = grid.build(shown, cells, records)
    there = (ROOT / 'README.md').read_text()
    assert readme.written(there, grids, 'results') == there


def test_readme_lines():
    """One for each shown row and column that was run; the best published line not in doubt."""
    published = [
        Published(name, 'who', '[paper]', {'A': {'HR@10': value}}, doubt=doubt)
        for name, value, doubt in (('low', 0.1, ''), ('high', 0.3, ''), ('wrong', 0.9, 'typo'))
    ]
    shown = Table(
        'T', '', (), (Row('x', 'e.py'), Row('y', 'e.py')), 'x', tuple(published), shown=('x',)
    )
    value = grid.Value(0.25, half=0.01, seeds=3)
    lines = [
        grid.Line('x', {('A', 'HR@10'): value, ('B', 'HR@10'): grid.Value(0.5, seeds=1)}),
        grid.Line('y', {('A', 'HR@10'): value}),
        *(
            grid.Line(p.name, {('A', 'HR@10'): grid.Value(p.values['A']['HR@10'])}, published=p)
            for p in published
        ),
    ]
    heads = [('A', 'HR@10'), ('B', 'HR@10')]
    made = grid.Grid(shown, heads, lines, {}, {}, None, [], 't', [], set())
    written = readme.results({'t': made}, 'results').splitlines()[2:]
    assert written == [
        '| x | A | HR@10 .2500 ± .0100 | 3 | high: .3000 | [t](results/t/table.md) |',
        '| x | B | HR@10 .5000 | 1 | – | [t](results/t/table.md) |',
    ]
    made.lower = {('A', 'HR@10')}
    assert 'low: .1000' in readme.results({'t': made}, 'results')
    with pytest.raises(UserError, match='the README needs the lines'):
        readme.written('no marks', {}, 'results')
