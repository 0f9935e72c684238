"""Rows on disk, their fields as codes, and training batches: pure, whole and evenly filled."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrec.data.fields import Encoder, Field, check_fields
from jaxrec.data.rows import RowBatches, Rows, row_batch
from jaxrec.errors import UserError

NAN = np.float32(np.nan)
LABELS = ('click', 'like')
FIELDS = (
    Field('user', least=2),
    Field('item'),
    Field('tab'),
    Field('price', 'quantile', size=4),
    Field('age', 'number'),
    Field('tags', 'set'),
    Field('past', 'set', of='item'),
    Field('watched', 'set', of='item'),
)


def make_rows(n=60, users=7, items=9, seed=0):
    rng = np.random.default_rng(seed)
    past = rng.integers(1, items + 1, (users, 4)) * (rng.random((users, 4)) < 0.7)
    like = (rng.random(n) < 0.3).astype(np.float32)
    return Rows(
        users=rng.integers(0, users, n).astype(np.int32),
        items=rng.integers(1, items + 1, n).astype(np.int32),
        times=np.sort(rng.integers(0, 1000, n)),
        user_ids=np.arange(users) * 3,
        item_ids=np.array([b'%03d' % i for i in range(items)]),
        features={
            'tab': rng.integers(-1, 4, n).astype(np.int32),
            'watched': (rng.integers(0, items + 1, (n, 3))).astype(np.int32),
        },
        user_features={
            'age': np.where(rng.random(users) < 0.2, NAN, rng.normal(30, 9, users)).astype(
                np.float32
            ),
            'past': past.astype(np.int32),
        },
        item_features={
            'tags': rng.integers(0, 5, (items, 2)).astype(np.int32),
            'price': np.append(rng.integers(1, 9, items - 1), NAN).astype(np.float32),
        },
        labels={
            'click': (rng.random(n) < 0.5).astype(np.float32),
            'like': np.where(rng.random(n) < 0.2, NAN, like).astype(np.float32),
        },
        name='made',
    )


def columns(rows):
    found = {}
    for field in dataclasses.fields(rows):
        value = getattr(rows, field.name)
        group = value if isinstance(value, dict) else {'': value}
        found |= {(field.name, name): column for name, column in group.items()}
    return found


def test_save_and_load(tmp_path):
    rows = make_rows()
    meta = rows.save(tmp_path / 'a', {'source': 'here'})
    again = Rows.load(tmp_path / 'a')
    assert meta == json.loads((tmp_path / 'a' / 'meta.json').read_text())
    assert meta['kind'] == 'rows' and meta['source'] == 'here'
    assert columns(again).keys() == columns(rows).keys()
    for key, column in columns(rows).items():
        np.testing.assert_array_equal(columns(again)[key], column, err_msg=str(key))
    assert isinstance(again.labels['click'], np.memmap)
    assert again.content_hash() == rows.content_hash() == meta['data_hash']
    assert [p.name for p in tmp_path.iterdir()] == ['a']
    del meta['meta_hash']
    (tmp_path / 'a' / 'meta.json').write_text(json.dumps({**meta, 'kind': 'graph'}))
    with pytest.raises(ValueError, match='holds graph, not rows'):
        Rows.load(tmp_path / 'a')


def test_hash_sees_every_column():
    hashes = {make_rows().content_hash()}
    for (group, name), column in columns(make_rows()).items():
        if group == 'name':
            continue
        rows = make_rows()
        changed = column.copy()
        changed[0] = b'zzz' if column.dtype.kind == 'S' else 77
        if name:
            getattr(rows, group)[name] = changed
        else:
            setattr(rows, group, changed)
        hashes.add(rows.content_hash())
    assert len(hashes) == len(columns(make_rows()))


def test_statistics():
    rows = make_rows()
    found = rows.statistics()
    like = rows.labels['like'].astype(np.float64)
    assert found['rows'] == 60 and found['users'] == len(set(rows.users.tolist()))
    assert found['items'] == len(set(rows.items.tolist()))
    assert found['labels']['like'] == pytest.approx(np.nanmean(like), abs=1e-12)
    rows.labels['like'][:] = NAN
    assert rows.statistics()['labels']['like'] is None


def test_outcomes():
    rows = make_rows()
    labels, mask = rows.outcomes(LABELS, np.array([5, 3]))
    assert labels.dtype == mask.dtype == np.float32
    for at, row in enumerate((5, 3)):
        for column, name in enumerate(LABELS):
            known = not np.isnan(rows.labels[name][row])
            assert mask[at, column] == known
            assert labels[at, column] == (rows.labels[name][row] if known else 0)
    with pytest.raises(UserError, match="no label 'lick'; it has click, like"):
        rows.outcomes(('lick',), np.array([0]))


# Fields ------------------------------------------------------------------------------------------


def slow_codes(rows, fields, train):
    """By field, a list of codes (or numbers) of every row, one value at a time."""

    def value(name, row):
        if name in ('user', 'item'):
            return int(getattr(rows, name + 's')[row])
        if name in rows.features:
            return rows.features[name][row]
        if name in rows.user_features:
            return rows.user_features[name][rows.users[row]]
        return rows.item_features[name][rows.items[row] - 1]

    first, codes, tables = 1, {}, {}
    for field in sorted(fields, key=lambda field: bool(field.of)):
        everything = [value(field.column, row) for row in range(len(rows))]
        training = [everything[row] for row in train]
        if field.kind == 'number':
            real = np.array([v for v in training if not np.isnan(v)], np.float64)
            codes[field.column] = [
                0 if np.isnan(v) else (v - real.mean()) / real.std() for v in everything
            ]
            continue
        if field.kind == 'quantile':
            real = sorted(float(v) for v in training if not np.isnan(v))
            size = field.size
            ranks = [int(np.ceil(k / size * len(real))) for k in range(1, size)]
            edges = [real[rank - 1] for rank in ranks]
            codes[field.column] = [
                first + (size if np.isnan(v) else sum(edge <= v for edge in edges))
                for v in everything
            ]
            first += size + 1
            continue
        if field.of:
            table = tables[field.of]
        else:
            seen = [v for vs in training for v in np.atleast_1d(vs)]
            seen = [int(v) for v in seen if v > 0 or field.kind == 'category']
            known = sorted({v for v in seen if seen.count(v) >= field.least})
            table = {v: first + n for n, v in enumerate(known)}, first + len(known)
            first += len(known) + 1
        tables[field.column] = table
        pick = lambda v, t=table: t[0].get(int(v), t[1])  # noqa: E731
        if field.kind == 'set':
            codes[field.column] = [[pick(v) if v > 0 else 0 for v in vs] for vs in everything]
        else:
            codes[field.column] = [pick(v) for v in everything]
    return codes, first


@pytest.mark.parametrize('count', [2, 8, 25])
def test_codes(count):
    rows = make_rows(seed=count)
    train = np.arange(count)
    encode = Encoder(rows, FIELDS, train)
    wanted, size = slow_codes(rows, FIELDS, train)
    index = np.random.default_rng(1).permutation(len(rows))
    got = encode(index)
    assert got.keys() == wanted.keys() == {field.column for field in FIELDS}
    for name, column in got.items():
        assert column.dtype == (np.float32 if name == 'age' else np.int32)
        tolerance = 1e-6 if name == 'age' else 0
        np.testing.assert_allclose(column, np.array(wanted[name])[index], atol=tolerance, rtol=0)
    widths = {'tags': 2, 'past': 4, 'watched': 3, 'age': 0}
    assert encode.sizes == {'table': size} | {
        f'feature.{field.column}': widths.get(field.column, 1) for field in FIELDS
    }


def test_vocabularies_come_from_training_rows_alone():
    rows, train = make_rows(), np.arange(20)
    before = Encoder(rows, FIELDS, train)(train)
    rows.users[20:], rows.items[20:] = 0, 1
    rows.features['tab'][20:] = 99
    after = Encoder(rows, FIELDS, train)
    for name, column in after(train).items():
        np.testing.assert_array_equal(column, before[name])
    unknown = np.setdiff1d(after(np.arange(20, 60))['tab'], before['tab'])
    assert len(unknown) == 1  # a code that no training row has


def test_fields_that_cannot_be():
    def message(*fields, rows=None):
        with pytest.raises(UserError) as error:
            Encoder(rows or make_rows(), fields, np.arange(9))
        assert '\n' not in str(error.value)
        return str(error.value)

    assert "no column 'prise'; it has user, item, tab, watched, age" in message(Field('prise'))
    assert 'holds sets' in message(Field('tags'))
    assert 'holds single values' in message(Field('tab', 'set'))
    assert "use kind='quantile'" in message(Field('age'))
    assert 'not one of category, set' in message(Field('age', 'log'))
    assert 'twice' in message(Field('tab'), Field('tab'))
    assert 'at least 1' in message(Field('tab', least=0))
    assert "of='item'" in message(Field('past', 'set', of='item'))
    assert "kind='set'" in message(Field('item'), Field('tab', of='item'))
    empty = make_rows()
    empty.user_features['age'][:] = NAN
    assert 'no value in the training rows' in message(Field('age', 'number'), rows=empty)
    with pytest.raises(UserError, match='empty'):
        check_fields(())
    with pytest.raises(UserError, match='no training row'):
        Encoder(make_rows(), FIELDS, np.arange(0))


# Batches -----------------------------------------------------------------------------------------


def make_batches(batch_rows=8, seed=3, train=None, process=(0, 1), rows=None):
    rows = rows or make_rows()
    train = np.arange(4, 47) if train is None else train
    # the number of the row is its only feature, so that it can be told
    encode = lambda index: {'row': index.astype(np.int32)}  # noqa: E731
    return RowBatches(
        rows, encode, LABELS, train, batch_rows=batch_rows, seed=seed, process=process
    )


def real(batch):
    return batch['features']['row'][batch['weights'] > 0]


def test_every_training_row_once_an_epoch():
    batches, rows = make_batches(), make_rows()
    assert batches.steps_per_epoch == 6 and batches.examples_per_epoch == 43
    orders = []
    for epoch in range(3):
        found = [batches(epoch * 6 + step) for step in range(6)]
        order = np.concatenate([real(batch) for batch in found])
        np.testing.assert_array_equal(np.sort(order), np.arange(4, 47))
        assert {len(real(batch)) for batch in found} == {7, 8}  # no tiny last one
        assert all(len(batch['weights']) == 8 for batch in found)
        orders.append(tuple(order))
        for batch in found:
            labels, mask = rows.outcomes(LABELS, real(batch))
            on = batch['weights'] > 0
            np.testing.assert_array_equal(batch['labels'][on], labels)
            np.testing.assert_array_equal(batch['mask'][on], mask)
            assert not batch['mask'][~on].any() and not batch['labels'][~on].any()
    assert len(set(orders)) == 3
    known = sum(np.isfinite(rows.labels[name][4:47]).sum() for name in LABELS)
    assert batches.targets_per_epoch == known and batches.fill == pytest.approx(43 / 48)


def test_batches_are_a_function_of_seed_and_step():
    one, other = make_batches(), make_batches()
    steps = [11, 0, 7, 7, 3]
    for step in steps:
        np.testing.assert_array_equal(real(one(step)), real(make_batches()(step)))
        np.testing.assert_array_equal(real(one(step)), real(other(step)))
    assert real(make_batches(seed=4)(0)).tolist() != real(one(0)).tolist()


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_a_batch(count):
    whole = make_batches()
    parts = [make_batches(process=(n, count)) for n in range(count)]
    for step in range(7):
        both = [part(step) for part in parts]
        for name in ('labels', 'mask', 'weights'):
            joined = np.concatenate([batch[name] for batch in both])
            np.testing.assert_array_equal(joined, whole(step)[name])
        joined = np.concatenate([real(batch) for batch in both])
        np.testing.assert_array_equal(joined, real(whole(step)))


def test_batches_that_cannot_be():
    with pytest.raises(UserError, match='batch_rows=7 .* 2 processes'):
        make_batches(7, process=(0, 2))
    with pytest.raises(UserError, match='no training row'):
        make_batches(train=np.arange(0))


def test_row_batch_of_real_fields():
    rows = make_rows()
    encode = Encoder(rows, FIELDS, np.arange(30))
    index = np.array([40, 2, 59])
    batch = row_batch(rows, encode, LABELS, index, 5)
    for name, column in encode(index).items():
        np.testing.assert_array_equal(batch['features'][name][:3], column)
        assert not batch['features'][name][3:].any()
    assert batch['weights'].tolist() == [1, 1, 1, 0, 0]
