"""Suite ann: the graph of an exported model beside exact lists, by the number of items."""

import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxrec.benchmarks import lists
from jaxrec.benchmarks.runs import served_run
from jaxrec.cli import say
from jaxrec.config import Mesh
from jaxrec.devices.mesh import TABLE, make_mesh, place_whole, table_rows
from jaxrec.devices.top_k import top_k
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.serving import ann, export
from jaxrec.training.restore import load_trained

CASES = ('10000', '100000', '1000000')  # items
K, DIM = 10, 64
_CENTRES, _SPREAD = 1000, 0.5  # of generated vectors: items around centres, as learnt ones are
_QUERIES, _TUNED = 1024, 200
_AT_ONCE = 256
_SECONDS = 1.0  # of a measurement


def measure_ann(
    experiment: Experiment | None, workdir: str | None, cases: Sequence[str] | None, repeats: int
) -> dict:
    """Milliseconds of a list of 10, one query and 256 at once: of the graph, and exact, the faster.

    The graph is widened until it finds `ann.LEAST` of the best 10 for some queries; its recall is
    that for others. Exact lists are this package's compiled top-k, and faiss' own.

    Args:
      experiment, workdir: of a run, whose items are another case; both None = none.
      cases: numbers of generated items, 64 dimensions.
      repeats: turns of every case.
    """
    cases = cases or CASES
    if not all(case.isdecimal() and int(case) >= K for case in cases):
        raise UserError(f'suite ann takes numbers of items, such as --cases={",".join(CASES)}')
    rows = []
    if experiment is not None or workdir is not None:
        with served_run(experiment, workdir) as folder:
            rows.append({'case': f'run {folder.name}', **_of_run(folder, repeats)})
            say(_line(rows[-1]))
    for case in cases:
        items, queries = generated(int(case))
        started = time.perf_counter()
        index = ann.built(items)
        built = time.perf_counter() - started
        rows.append({'case': case, **_compared(index, items, queries, repeats), 'build_s': built})
        say(_line(rows[-1]))
    last = rows[-1]
    return {
        'unit': 'ms/list',
        'ours': last['milliseconds'],
        'peer': None,
        'ratio': None,
        'cases': rows,
        'times_faster': last['times_faster'],
        'exact_is_better_for': [row['case'] for row in rows if row['better'] == 'exact'],
        'matmul_gflops': None,
        'data_hash': None,
    }


def generated(items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(items float32 [n, D], queries float32 [1024, D]): around common centres, lengths vary."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(_CENTRES, DIM)).astype(np.float32)

    def drawn(count):
        near = centres[rng.integers(_CENTRES, size=count)]
        return near + _SPREAD * rng.normal(size=(count, DIM)).astype(np.float32)

    return drawn(items), drawn(_QUERIES)


def _of_run(folder: pathlib.Path, repeats: int) -> dict:
    """Of the items of a run, after histories of its test users, by its exported folder."""
    trained = load_trained(folder)
    with tempfile.TemporaryDirectory() as scratch:
        export.write(trained, pathlib.Path(scratch, 'out'))
        model = export.loaded(pathlib.Path(scratch, 'out'))
    count = min(_QUERIES, len(trained.problem.split.test.users))
    _, raw = lists.histories(trained.problem, count)
    numbers = [[model.numbers[str(one)] for one in history] for history in raw]
    queries = np.concatenate([model.vectors(numbers[n : n + 64]) for n in range(0, count, 64)])
    items = np.asarray(model.items[1 : len(model.ids) + 1], np.float32)
    started = time.perf_counter()
    index = ann.built(items)
    took = time.perf_counter() - started
    return {
        **_compared(index, items, queries.reshape(-1, items.shape[1]), repeats),
        'build_s': took,
    }


def _compared(index: Any, items: np.ndarray, queries: np.ndarray, repeats: int) -> dict:
    """Recall, and the medians of times taken in turns."""
    import faiss

    flat = faiss.IndexFlatIP(items.shape[1])
    flat.add(np.ascontiguousarray(items))
    best = flat.search(queries, K)[1]
    tuned = min(_TUNED, len(queries) // 2)
    ann.widen(index, queries[:tuned], best[:tuned])
    others = queries[tuned:]
    reached = ann.recall(ann.search(index, others, K), best[tuned:])
    ways = {
        'graph': lambda some: ann.search(index, some, K),
        'compiled': _compiled(items),
        'faiss_exact': lambda some: flat.search(some, K),
    }
    figures = {}
    for size, name in ((1, 'milliseconds'), (min(_AT_ONCE, len(others)), 'many_ms')):
        times = {way: [] for way in ways}
        for _ in range(repeats):
            for way, call in ways.items():
                times[way].append(_milliseconds(call, others, size))
        middle = {way: float(np.median(some)) for way, some in times.items()}
        exact = min(middle['compiled'], middle['faiss_exact'])
        figures[name], figures[f'exact_{name}'] = middle['graph'], exact
    faster = figures['exact_milliseconds'] / figures['milliseconds']
    many = figures['exact_many_ms'] / figures['many_ms']
    return {
        'items': len(items),
        'recall@10': reached,
        'considered': index.hnsw.efSearch,
        **figures,
        'times_faster': faster,
        'many_times_faster': many,
        'better': 'graph'
        if min(faster, many) > 1
        else 'exact'
        if max(faster, many) < 1
        else 'both',
    }


def _compiled(items: np.ndarray) -> Callable:
    """Exact lists as `Recommender` makes them, on one device."""
    mesh, count = make_mesh(Mesh(1, 1), jax.devices()[:1]), len(items)
    rows = np.pad(items, ((1, table_rows(count) - count - 1), (0, 0)))
    table = jax.device_put(rows, jax.NamedSharding(mesh, TABLE))
    run = jax.jit(lambda queries, table: top_k(queries[:, None], table, count, None, K))

    def call(some):
        with jax.set_mesh(mesh):
            return jax.block_until_ready(run(place_whole({'queries': some})['queries'], table))

    return call


def _milliseconds(call: Callable, queries: np.ndarray, size: int) -> float:
    """Of one list, in calls of so many, for about a second."""
    call(queries[:size])
    started, count = time.perf_counter(), 0
    while (took := time.perf_counter() - started) < _SECONDS:
        first = count % (len(queries) - size + 1)
        call(queries[first : first + size])
        count += size
    return took / count * 1e3


def _line(row):
    return (
        f'{row["case"]}: recall {row["recall@10"]:.4f}, one list {row["milliseconds"]:.2f} ms '
        f'(exact {row["exact_milliseconds"]:.2f}), of {_AT_ONCE} at once {row["many_ms"]:.3f} ms '
        f'(exact {row["exact_many_ms"]:.3f}): better {row["better"]}'
    )
