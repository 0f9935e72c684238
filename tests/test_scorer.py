"""Scores of rows as people have them, against the evaluation's and against codes made slowly."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from runs import compiled
from test_export import FIELDS, clicks

from jaxrec.data.catalogue import plain
from jaxrec.data.row_catalogue import RowCatalogue
from jaxrec.devices.mesh import make_mesh
from jaxrec.errors import UserError
from jaxrec.serving.export import drawn_rows
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.scorer import Scorer
from jaxrec.training.restore import Trained


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A model as it is drawn, of rows with fields of every kind, its catalogue read back."""
    folder = tmp_path_factory.mktemp('clicks')
    experiment = clicks(folder)
    with jax.set_mesh(make_mesh(experiment.mesh, jax.devices()[:2])):
        problem = experiment.task.open(experiment, lambda line: None)
        graphdef, state = nnx.split(experiment.model.make(problem.sizes, rngs=nnx.Rngs(3)))
        params, mesh = nnx.to_pure_dict(state), jax.sharding.get_mesh()
    params['table'] = params['table'] * 30  # so that fields matter
    problem.catalogue.save(folder / 'catalogue')
    served = experiment.task.open_catalogue(folder / 'catalogue')
    assert served.sizes == problem.sizes and served.data_hash == problem.data_hash
    assert served.catalogue.content_hash() == problem.catalogue.content_hash()
    found = Trained(experiment, served, mesh, graphdef, params, {}, 0, folder, 'best')
    found.__dict__['problem'] = problem  # where `Trained.problem` would open the data
    return found


def as_people_have_them(rows, index):
    """Rows of the data by raw ids, with the columns of rows; members of 'watched' are items."""
    item = lambda n: plain(rows.item_ids[n - 1])  # noqa: E731
    return [
        {
            'user': plain(rows.user_ids[rows.users[n]]),
            'item': item(rows.items[n]),
            'tab': int(rows.features['tab'][n]),
            'watched': [item(m) for m in rows.features['watched'][n] if m],
            'like': 'no field: what else stands in a row does not matter',
        }
        for n in index
    ]


def test_rows_of_the_data_get_the_scores_of_the_evaluation(trained):
    rows, evaluation = trained.problem.source, trained.problem.evaluations['test']()
    scorer = Scorer(trained, batch_rows=16)
    params = jax.tree.map(jnp.asarray, jax.device_get(trained.params))  # without a mesh
    model = nnx.merge(trained.graphdef, params)
    places, batch = next(iter(evaluation.batches()))
    wanted = np.asarray(model.scores(batch, {}))[: len(places)]
    asked = as_people_have_them(rows, evaluation._index[places])
    for row in asked:  # padding stands anywhere in made rows, and at the end in those of people
        row['watched'] = row['watched'] or None
    np.testing.assert_allclose(scorer.logits(asked), wanted, atol=1e-5)
    chances = [[one['click'], one['like']] for one in scorer.score(asked)]
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-wanted.astype(np.float64))), atol=1e-6)
    assert len(np.unique(wanted)) > 20 and scorer.score([]) == []


def test_codes_of_any_rows(trained):
    """Known and new users and items; values known, other, missing; of the data, of the row."""
    catalogue, rows = trained.served.catalogue, trained.problem.source
    of = {'user': rows.user_ids, 'item': rows.item_ids}
    columns = {**rows.features, **rows.user_features, **rows.item_features}
    asked = drawn_rows(catalogue, 60, seed=2)
    found = catalogue(asked)

    def slow(row, field):
        codes, unit = catalogue.codes[field.column], catalogue.units[field.column]
        value = row.get(field.column)
        owner = None if unit == 'row' else row[unit]
        if owner is not None:
            owner = [plain(raw) for raw in of[unit]].index(owner)
        if field.column == 'user':
            value = owner
        elif field.column == 'item':
            value = None if owner is None else owner + 1
        elif value is not None and field.of == 'item':
            value = [[plain(raw) for raw in rows.item_ids].index(raw) + 1 for raw in value]
        elif value is None and owner is not None:
            value = columns[field.column][owner].tolist()
        vocabulary = codes.known.tolist()
        code = lambda v: codes.first + (vocabulary + [v]).index(v)  # noqa: E731
        if field.kind == 'category':
            return code(value)
        if field.kind == 'set':
            members = [code(v) if v else 0 for v in value or []]
            return members + [0] * (codes.width - len(members))
        if field.kind == 'number':
            mean, deviation = vocabulary
            return 0 if value is None or value != value else (value - mean) / deviation
        missing = value is None or value != value
        return codes.first + (
            len(vocabulary) + 1 if missing else sum(e <= value for e in vocabulary)
        )

    for field in FIELDS:
        wanted = [slow(row, field) for row in asked]
        np.testing.assert_allclose(found[field.column], wanted, rtol=1e-6, err_msg=field.column)
        assert len(np.unique(wanted)) > 2


def test_threads_and_no_compiler_after_a_warm_up(trained):
    scorer = Scorer(trained, batch_rows=16)
    scorer.warm_up()
    rows = drawn_rows(scorer.catalogue, 50)
    parts = [rows[n : n + 1 + n % 20] for n in range(0, 50, 3)]
    with compiled() as programs, concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(scorer.logits, parts))
    assert not programs
    for part, logits in zip(parts, found, strict=True):
        np.testing.assert_allclose(logits, scorer.logits(part), atol=1e-6)


@pytest.mark.parametrize(
    'change, text',
    [
        ({'user': 1}, 'user 1 is not in the data; give user=None'),
        ({'item': 'new'}, "item 'new' is not in the data"),
        ({'tab': ...}, "row 1 has no 'tab'; give None"),
        ({'user': ...}, "row 1 has no 'user'"),
        ({'tab': 'two'}, "'tab' must be whole numbers, or None"),
        ({'tab': 1.5}, "'tab' must be whole numbers"),
        ({'tab': True}, "'tab' must be whole numbers"),
        ({'tab': [1]}, "'tab' must be whole numbers"),
        ({'age': 'old'}, "'age' must be a number, or None"),
        ({'watched': 3}, "'watched' must be a list of up to 3 items"),
        ({'watched': ['000'] * 4}, "'watched' must be a list of up to 3 items"),
        ({'watched': ['x']}, "item 'x' is not in the data"),
        ({'tags': ['a']}, "'tags' must be whole numbers"),
    ],
)
def test_rows_that_cannot_be(trained, change, text):
    row = {'user': 3, 'item': '001', 'tab': 1, 'watched': ['002'], **change}
    row = {name: value for name, value in row.items() if value is not ...}
    with pytest.raises(UserError, match=text):
        Scorer(trained, batch_rows=2).score([row])


def test_what_is_not_served(trained):
    with pytest.raises(UserError, match='rows is a list of dicts'):
        Scorer(trained).score({'user': 3})
    with pytest.raises(UserError, match='at least 1'):
        Scorer(trained, batch_rows=0)
    with pytest.raises(UserError, match='holds no recommender'):
        Recommender(trained)


def test_a_damaged_catalogue_of_rows_is_one_line(trained):
    folder = trained.workdir / 'catalogue'
    whole = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    rng = np.random.default_rng(0)
    for path, content in whole.items():
        for turn in range(3):
            broken = bytearray(content)
            if turn:
                broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
            else:
                del broken[rng.integers(len(broken)) :]
            path.write_bytes(broken)
            with pytest.raises(UserError, match='is damaged'):
                RowCatalogue.load(folder)
        path.write_bytes(content)
    RowCatalogue.load(folder)
