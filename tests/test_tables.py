"""The parts of a table: its file, statistics, the arithmetic check, cells, and the text formats."""

import copy
import csv
import dataclasses
import io
import json
import pathlib

import numpy as np
import pytest

from jaxrec.errors import UserError
from jaxrec.paper import cells as cells_lib
from jaxrec.paper import grid, hashes, plausible, spec, statistics, text
from jaxrec.paper.spec import Column, Ordering, Published, Row, Table

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'experiments' / 'tables').glob('*.py'))
METRICS = ('HR@5', 'NDCG@5', 'HR@10', 'NDCG@10')


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
    from jaxrec.evaluation import rank_metrics

    seeds = {}
    for seed, greater in enumerate(ranks):
        values = rank_metrics.per_example(greater, np.zeros_like(greater), (5, 10))
        seeds[str(seed)] = {
            'metrics': rank_metrics.mean(values),
            'ranks': {
                'greater': cells_lib.pack(greater),
                'ties': cells_lib.pack(np.zeros_like(greater)),
            },
            'code': code,
        }
    return {
        'format': 1,
        'hashes': {'config': 'k', 'data': data},
        'protocol': {'name': protocol, 'filter_seen': True, 'cutoffs': [5, 10]},
        'split': 'test',
        'data_split': 'leave-one-out',
        'seeds': seeds,
    }


@pytest.fixture
def stored():
    """The table, its cells, and records of them: 'good' is better, 'same' is not."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 40, (3, 400))
    made = {'base': base, 'good': np.maximum(base - 8, 0), 'same': base.copy()}
    made['same'][:, :10] = rng.permutation(made['same'][:, :10], axis=1)
    cells = spec.cells(table(), ROOT / 'experiments' / 'tables' / 'x.py')
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


def test_bootstrap_is_the_slow_one():
    """Drawing how often each distinct value comes is drawing users."""
    rng = np.random.default_rng(2)
    d = rng.choice([0.0, 0.5, -1.0], 50)
    slow = d[np.random.default_rng(3).integers(0, 50, (20_000, 50))].mean(1)
    fast = statistics._resampled_means(d, 20_000)
    np.testing.assert_allclose(fast.mean(), slow.mean(), atol=5e-3)
    np.testing.assert_allclose(fast.std(), slow.std(), rtol=0.03)


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
    assert plausible.problems(good) == []
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
    from jaxrec.training.state import split_model

    mesh(1, 1)
    made = spec.load(path)
    source = path.read_text()
    assert f'--table=experiments/tables/{path.name}' in source
    cells = spec.cells(made, path)
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        split_model(cell.experiment.model, 100)
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
                    Column('Data 2', ('HR@10',), {'eval.filter_seen': False}),
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
        ({'published': (Published('x', '', '', {}),)}, 'needs source and tag'),
        ({'published': (Published('x', 's', 't', {'D': {}}),)}, "values for 'D', not a column"),
        ({'orderings': (Ordering('x', 'base', '', ''),)}, "names 'x', not a row"),
    ],
)
def test_mistakes_of_a_table_file_are_one_line(changes, error):
    changes = {'orderings': (), 'published': (), **changes}
    if changes.get('baseline') != 'none' and 'rows' not in changes:
        changes['rows'] = (Row('base', 'experiments/quickstart.py'),)
    made = table(**changes)
    with pytest.raises(UserError, match=error.replace('.', r'\.')):
        spec._check(made, 'x.py')
        spec.cells(made, ROOT / 'experiments' / 'tables' / 'x.py')


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


def test_per_user_metrics_share_ties():
    made = record([np.array([0, 9, 30])])
    made['seeds']['0']['ranks']['ties'] = cells_lib.pack(np.array([0, 1, 0]))
    np.testing.assert_allclose(cells_lib.per_user(made, 'HR@10', ['0']), [[1, 0.5, 0]])


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


def test_hashes_see_what_matters(tmp_path, monkeypatch):
    cell = spec.cells(table(), ROOT / 'experiments' / 'tables' / 'x.py')[0]
    first = hashes.config_hash(cell.experiment)
    other = copy.deepcopy(cell.experiment)
    other.train.seed, other.data.source, other.train.log_every = 7, 'elsewhere', 1
    assert hashes.config_hash(other) == first
    other.optim.eps = 1e-7
    assert hashes.config_hash(other) != first
    files = hashes.code_files('jaxrec.models.sasrec')
    assert {
        'models/sasrec.py',
        'losses/softmax.py',
        'training/state.py',
        'evaluation/ranking.py',
        'train.py',
    } <= set(files)
    assert not {'models/kuaiformer.py', 'table.py', 'paper/grid.py', 'recommend.py'} & set(files)
    assert not any(name.startswith(('benchmarks/', 'datasets/')) for name in files)

    package = tmp_path / 'jaxrec'
    for name in files:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes((hashes.PACKAGE / name).read_bytes())
    before = hashes.code_hash(cell.experiment)
    monkeypatch.setattr(hashes, 'PACKAGE', package)
    after = hashes.code_hash(cell.experiment)
    loss = package / 'losses' / 'softmax.py'
    loss.write_text(loss.read_text() + '\nX = 1\n')
    changed = hashes.code_hash(cell.experiment)
    assert before == after != changed


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
    other = copy.deepcopy(records)
    other[cells[2].key]['protocol']['cutoffs'] = [5, 10, 20]  # no number depends on these
    grid.build(made, cells, other)


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
    cells_lib.publish(cell, here, there)
    cells_lib.write(here, cell, only(second))
    cells_lib.publish(cell, here, there)
    assert published() == json.loads(cells_lib.to_text(only(first, second)))
    cells_lib.write(here, cell, only(first, code='new'))
    with pytest.raises(UserError, match='holds 2 seeds of another config, code or data'):
        cells_lib.publish(cell, here, there)
    cells_lib.write(here, cell, only(first, second, code='new'))
    cells_lib.publish(cell, here, there)
    assert {run['code'] for run in published()['seeds'].values()} == {'new'}


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
            assert '/root' not in stored and '/home' not in stored
