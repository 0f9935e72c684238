"""A trained model as a folder that serves without this library: function, arrays, ids, loader."""

import importlib.util
import pathlib
import shutil
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from flax import nnx
from pyarrow import parquet

from jaxrec import files
from jaxrec.data.catalogue import plain
from jaxrec.data.row_catalogue import RowCatalogue
from jaxrec.errors import UserError
from jaxrec.evaluation.run import Beginning
from jaxrec.experiment import to_record
from jaxrec.serving import ann
from jaxrec.serving.bulk import raw_column
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.scorer import Scorer
from jaxrec.training.logs import LOG, read_series
from jaxrec.training.restore import Trained
from jaxrec.training.workdir import versions

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
ABOUT = 'model.json'
FORMAT = 1  # of the folder
_SHIPPED = pathlib.Path(__file__).parent / 'shipped'
_CHECKED = 64  # histories or rows of which the exported function must give the same
_CLOSE = 1e-4  # of the largest score: two kernels round a sum differently, and no more
_K = 10
_MEASURED = 200  # histories for which the graph's lists are compared with exact ones


def check_output(folder: pathlib.Path, index: bool = False) -> None:
    """Raises UserError for a folder that holds anything but an exported model.

    And for a library that is missing.
    """
    there = folder.exists()
    if there and not folder.is_dir():
        raise UserError(f'{folder} is a file; --output is the folder to write')
    if there and any(folder.iterdir()) and not (folder / ABOUT).exists():
        raise UserError(f'{folder} is in the way: it holds something else than an exported model')
    if importlib.util.find_spec('flatbuffers') is None:
        raise UserError("exporting needs flatbuffers: pip install 'jaxrec[export]'")
    if index and importlib.util.find_spec('faiss') is None:
        raise UserError("--ann needs faiss-cpu: pip install 'jaxrec[ann]'")


def write(trained: Trained, folder: pathlib.Path, index: bool = False) -> dict[str, Any]:
    """Writes a run's model; the folder appears whole or not at all.

    function.stablehlo (see `exported`), arrays.npz that it is called with, model.json, and model.py
    that uses them. Of lists also items.npy (vectors by item number), ids.npy, titles.npy, and the
    same as items.parquet; of scores codes.npz, by which fields are coded.

    Args:
      trained: the model.
      folder: to write.
      index: of lists, also items.faiss, a graph (HNSW) that finds most of the best items faster
        where there are many; 'ann' of the result says how many and how much.

    Returns:
      What model.json holds; its 'check' compares the lists or scores of the folder and the run's.

    Raises:
      UserError: the model serves neither lists nor scores, or the folder gives other ones.
    """
    check_output(folder, index)
    verbs = trained.served.verbs
    kinds = {'queries': _Lists, 'scores': _Scores}
    kind = next((kinds[verb] for verb in verbs if verb in kinds), None)
    if kind is None:
        raise UserError(
            f'{trained.workdir} holds a model that gives neither lists nor scores of rows: there '
            'is nothing to export'
        )
    one = kind(trained)
    with files.replacing_folder(folder) as partial:
        function, arrays = one.function()
        (partial / 'function.stablehlo').write_bytes(function.serialize())
        about = {**_about(trained), **one.about(), 'signature': _signature(function)}
        one.save(partial, arrays)
        shutil.copyfile(_SHIPPED / f'{one.shipped}.py', partial / 'model.py')
        files.write_json(partial / ABOUT, about)
        model = loaded(partial)
        about['check'] = one.check(model)
        if index:
            about['ann'] = one.index(partial, model)
        files.write_json(partial / ABOUT, about)
    return about


def loaded(folder: pathlib.Path) -> Any:
    """The model of an exported folder as its own loader opens it."""
    file = folder / 'model.py'
    module = types.ModuleType('exported_model')
    exec(compile(file.read_bytes(), file, 'exec'), module.__dict__)  # leaves no bytecode
    return module.Model(folder)


def exported(
    function: Callable, arrays: Mapping[str, Any], inputs: Mapping[str, Any], always: tuple = ()
) -> tuple[jax.export.Exported, list[str]]:
    """`function(arrays, inputs)` as StableHLO for all `PLATFORMS`, and the arrays that it reads.

    Args:
      function: of the model; runs without a mesh.
      arrays: by name.
      inputs: by name, (dtype, shape after the batch); the batch dimension is symbolic.
      always: arrays that are handed over even if they are not read.
    """
    (batch,) = jax.export.symbolic_shape('batch')
    given = {n: jax.ShapeDtypeStruct((batch, *rest), kind) for n, (kind, rest) in inputs.items()}
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in arrays.items()}

    def made(read):
        def of_read(some, inputs):
            empty = {n: jnp.zeros(x.shape, x.dtype) for n, x in shapes.items() if n not in some}
            return function({**empty, **some}, inputs)

        chosen = {name: shapes[name] for name in read}
        return jax.export.export(jax.jit(of_read), platforms=PLATFORMS)(chosen, given)

    names = sorted(arrays)
    kept = made(names).module_kept_var_idx
    read = [name for n, name in enumerate(names) if n in kept or name in always]
    return made(read), read


class _Lists:
    """User vectors from item numbers; lists by their products with the item vectors."""

    shipped = 'lists'

    def __init__(self, trained: Trained):
        self._trained, self._inputs = trained, trained.experiment.model.inputs()
        self._recommender = Recommender(trained, _K)

    def function(self):
        trained, inputs = self._trained, self._inputs
        flat, rebuilt = _arrays(trained)
        codes = self._recommender.catalogue.codes
        flat['items'] = flat['items'].astype(np.float32)
        flat |= {f'codes.{name}': np.asarray(column) for name, column in codes.items()}

        def queries(arrays, given):
            """float32 [batch, K, D] of int32 [batch, max_len]: newest at the right, 0 = none."""
            items, (params, carried) = given['items'], rebuilt(arrays)
            real = (items > 0).astype(jnp.int32)
            batch = {'items': items, 'segments': real}
            batch['positions'] = real * jnp.arange(inputs.max_len, dtype=jnp.int32)
            if inputs.features:
                names = [feature.column for feature in inputs.features]
                coded = {n: arrays[f'codes.{n}'][items] for n in names if n in codes}
                batch['features'] = {name: coded.get(name, jnp.zeros_like(items)) for name in names}
            with jax.default_matmul_precision(trained.experiment.task.precision):
                found = nnx.merge(trained.graphdef, params).queries(batch, carried)
            return {'queries': found.astype(jnp.float32)}

        asked = {'items': (jnp.int32, (inputs.max_len,))}
        function, read = exported(queries, flat, asked, always=('items',))
        return function, {name: flat[name] for name in read}

    def about(self):
        return {'kind': 'lists', 'items': self._recommender.catalogue.num_items}

    def save(self, folder, arrays):
        known = self._recommender.catalogue
        vectors = arrays.pop('items')
        np.savez(folder / 'arrays.npz', **arrays)
        np.save(folder / 'items.npy', vectors)
        np.save(folder / 'ids.npy', known.item_ids)
        vectors = np.ascontiguousarray(vectors[1 : known.num_items + 1])
        table = {'item': raw_column(known.item_ids)}
        if known.titles is not None:
            np.save(folder / 'titles.npy', known.titles)
            table['title'] = raw_column(known.titles)
        width = vectors.shape[1]
        table['vector'] = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), width)
        parquet.write_table(pa.table(table), folder / 'items.parquet')

    def check(self, model):
        """Compares lists after drawn histories."""
        known, histories = self._recommender.catalogue, self._drawn(_CHECKED)
        wanted = self._recommender.after(histories)
        raw = [[known.raw_item(number) for number in history] for history in histories]
        found = model.recommend(raw, self._recommender.k)
        scale = max((abs(row['score']) for rows in wanted for row in rows), default=1.0)
        same, places, largest = 0, 0, 0.0
        for mine, theirs in zip(wanted, found, strict=True):
            if len(mine) != len(theirs):
                raise UserError(_OTHER.format(self._trained.workdir, 'lists'))
            known_scores = {row['item']: row['score'] for row in mine}
            for a, b in zip(mine, theirs, strict=True):
                places, same = places + 1, same + (a['item'] == b['item'])
                of_item = known_scores.get(b['item'], a['score'])
                largest = max(largest, abs(a['score'] - b['score']), abs(of_item - b['score']))
        _compare(self._trained, largest, scale, 'lists')
        return {'lists': len(wanted), 'ids_equal': same / max(places, 1), 'difference': largest}

    def index(self, folder, model):
        """Writes items.faiss; {'recall@10', 'milliseconds', 'exact_milliseconds'} of a list.

        As wide as finds `ann.LEAST` of the best; measured after other histories.
        """
        import faiss

        items = model.items[1 : len(model.ids) + 1]
        index = ann.built(items)
        queries = np.concatenate(model.vectors(self._drawn(_MEASURED, seed=1)))
        best = np.argsort(-(queries @ items.T), axis=1)[:, : min(_K, len(items))]
        ann.widen(index, queries, best)
        faiss.write_index(index, str(folder / 'items.faiss'))
        raw = [[model.ids[n - 1] for n in history] for history in self._drawn(_MEASURED)]
        lists, times = [], []
        for one in (None, index):
            model.recommend(raw, _K, True, one)
            started = time.perf_counter()
            lists.append(model.recommend(raw, _K, True, one))
            times.append((time.perf_counter() - started) / len(raw) * 1000)
        ids = [[{row['item'] for row in rows} for rows in found] for found in lists]
        shares = [len(a & b) / len(a) for a, b in zip(*ids, strict=True)]
        told = {f'recall@{_K}': float(np.mean(shares))}
        return {**told, 'milliseconds': times[1], 'exact_milliseconds': times[0]}

    def _drawn(self, count, seed=0):
        """Histories of item numbers, none to twice the model's window long."""
        rng = np.random.default_rng(seed)
        lengths = rng.integers(0, 2 * self._inputs.max_len, count)
        last = self._recommender.catalogue.num_items + 1
        return [rng.integers(1, last, n).tolist() for n in lengths]


class _Scores:
    """Logits of labels from the codes of fields."""

    shipped = 'scores'

    def __init__(self, trained: Trained):
        self._trained, self._scorer = trained, Scorer(trained)
        self._catalogue = self._scorer.catalogue

    def function(self):
        trained = self._trained
        flat, rebuilt = _arrays(trained)

        def logits(arrays, features):
            """float32 [batch, labels] of the fields' codes."""
            params, carried = rebuilt(arrays)
            with jax.default_matmul_precision(trained.experiment.task.precision):
                model = nnx.merge(trained.graphdef, params)
                return {'logits': model.scores({'features': features}, carried)}

        empty = self._catalogue([])
        inputs = {name: (column.dtype, column.shape[1:]) for name, column in empty.items()}
        function, read = exported(logits, flat, inputs)
        return function, {name: flat[name] for name in read}

    def about(self):
        known = self._catalogue
        fields = {name: {'unit': known.units[name], **c.about} for name, c in known.codes.items()}
        return {'kind': 'scores', 'labels': list(self._scorer.labels), 'fields': fields}

    def save(self, folder, arrays):
        known = self._catalogue
        codes = {'user_ids': known.user_ids, 'item_ids': known.item_ids}
        codes |= {f'known.{name}': one.known for name, one in known.codes.items()}
        codes |= {f'missing.{name}': one.missing for name, one in known.codes.items()}
        codes |= {f'coded.{name}': column for name, column in known.coded.items()}
        np.savez(folder / 'arrays.npz', **arrays)
        np.savez(folder / 'codes.npz', **codes)

    def index(self, folder, model):
        raise UserError('--ann is for models that give lists: this one scores rows')

    def check(self, model):
        """Compares logits of drawn rows."""
        rows = drawn_rows(self._catalogue, _CHECKED)
        wanted, found = self._scorer.logits(rows), model.logits(rows)
        largest = float(np.abs(wanted - found).max())
        _compare(self._trained, largest, float(np.abs(wanted).max()), 'scores')
        return {'rows': len(rows), 'difference': largest}


def drawn_rows(catalogue: RowCatalogue, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of known and new users and items, with known, other and missing values."""
    rng, rows = np.random.default_rng(seed), []

    def value(codes):
        if rng.random() < 0.2:
            return None
        if codes.kind in ('number', 'quantile'):
            return float(rng.choice(codes.known) * rng.normal(1, 0.5))
        values = np.append(codes.known, np.max(codes.known, initial=0) + 1)
        if codes.kind == 'category':
            return int(rng.choice(values))
        if codes.of == 'item':
            values = catalogue.item_ids
        return [plain(one) for one in rng.choice(values, rng.integers(codes.width + 1))]

    for _ in range(count):
        ids = {'user': catalogue.user_ids, 'item': catalogue.item_ids}
        row = {u: None if rng.random() < 0.1 else plain(rng.choice(raw)) for u, raw in ids.items()}
        for name, unit in catalogue.units.items():
            if name not in row and (unit == 'row' or rng.random() < 0.2):
                row[name] = value(catalogue.codes[name])
        rows.append(row)
    return rows


_OTHER = '{}: the exported function gives other {} than the model; nothing was written'


def _compare(trained, largest, scale, what):
    if not largest <= _CLOSE * max(scale, 1.0):
        text = _OTHER.format(trained.workdir, what)
        raise UserError(f'{text} (scores differ by {largest:.2g} of {scale:.2g})')


def _arrays(trained):
    """All arrays by name, on the host, and what puts (parameters, carried) together again.

    What a pass begins with is computed once; where it is a parameter, it is that parameter's array.
    """
    with jax.set_mesh(trained.mesh):
        carried = Beginning(trained.graphdef, trained.served)(trained.params, trained.constants)
    leaves, structure = jax.tree.flatten_with_path((trained.params, carried))
    names, flat = [], {}
    for path, leaf in leaves:
        where, *rest = (jax.tree_util.keystr((key,), simple=True) for key in path)
        name = '.'.join(rest) if where == '1' else '.'.join(['params', *rest])
        names.append(name)
        flat[name] = np.asarray(leaf)

    def rebuilt(arrays):
        return jax.tree.unflatten(structure, [arrays[name] for name in names])

    return flat, rebuilt


def _about(trained):
    """What the model is, and what is known of how good it is."""
    found = {}
    for path in sorted(trained.workdir.glob('evaluation_*.json')):
        result = files.noted(path) or {}
        if (result.get('step'), result.get('checkpoint')) == (trained.step, trained.checkpoint):
            names = ('split', 'metrics', 'references', 'protocol', 'examples')
            found[path.stem.removeprefix('evaluation_')] = {n: result.get(n) for n in names}
    return {
        'format': FORMAT,
        'data': trained.served.about,
        'data_hash': trained.served.data_hash,
        'protocol': trained.experiment.task.protocol_fields(),
        'valid': _validated(trained),
        'evaluations': found,
        'step': trained.step,
        'checkpoint': trained.checkpoint,
        'experiment': to_record(trained.experiment),
        'versions': versions(),
    }


def _validated(trained):
    """Metrics of the validation at the model's step, {} if there was none."""
    series = read_series(trained.workdir / LOG)
    found = {name.removeprefix('valid/'): dict(s) for name, s in series.items() if 'valid/' in name}
    return {name: by[trained.step] for name, by in found.items() if trained.step in by}


def _signature(function):
    (arrays, inputs), _ = jax.tree.unflatten(function.in_tree, function.in_avals)
    outputs = jax.tree.unflatten(function.out_tree, function.out_avals)

    def told(tree):
        shape = lambda x: [n if isinstance(n, int) else str(n) for n in x.shape]  # noqa: E731
        return {name: {'dtype': str(x.dtype), 'shape': shape(x)} for name, x in tree.items()}

    return {
        'arrays': told(arrays),
        'inputs': told(inputs),
        'outputs': told(outputs),
        'platforms': list(function.platforms),
        'calling_convention': function.calling_convention_version,
    }
