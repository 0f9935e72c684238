"""Your own graph, for the node task: a folder with three Parquet files (--log=FOLDER).

    nodes.parquet     node, and features: columns of numbers, or of lists of as many numbers
    edges.parquet     source, target: nodes; in one direction or in both
    labels.parquet    node, label, and if you have a split, part: train, valid or test

Nodes are numbers or words, and are numbered by ascending id; so are labels. A node without a label
is one of no class.
"""

import hashlib
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from jaxrec import files
from jaxrec.data.graph import PARTS, UNKNOWN, Graph, undirected
from jaxrec.errors import UserError

FILES = ('nodes.parquet', 'edges.parquet', 'labels.parquet')


def content_hash(folder: pathlib.Path) -> str:
    """sha256 over the three files; UserError where one is missing."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f'{folder} has no {missing[0]}: a graph is a folder with {", ".join(FILES)}'
        )
    hashes = ' '.join(files.digest(folder / name) for name in FILES)
    return hashlib.sha256(hashes.encode()).hexdigest()


def read(folder: pathlib.Path) -> Graph:
    """The graph of a folder.

    Raises:
      UserError: a column that is missing or not as it has to be, a node that comes twice, a loop,
        an edge that comes twice, an edge or label of a node that is not there.
    """
    nodes, edges, labels = (_table(folder / name) for name in FILES)
    ids = _column(nodes, 'node', folder / FILES[0])
    known, first = np.unique(ids, return_index=True)
    if len(known) < len(ids):
        again = np.setdiff1d(np.arange(len(ids)), first)[0]
        raise UserError(f'{folder / FILES[0]} row {again + 1}: node {ids[again]!r} comes twice')
    ends = [_numbers(edges, name, folder / FILES[1], known) for name in ('source', 'target')]
    _check_edges(*ends, folder / FILES[1], known)
    classes, parts = _labelled(labels, folder / FILES[2], known)
    features = _features(nodes, folder / FILES[0])
    features = None if features is None else features[first]
    return Graph(len(known), undirected(np.stack(ends)), features, classes, *parts, folder.name)


def _table(path):
    try:
        return pyarrow.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError(f'{path} is no Parquet file, or damaged: {e}'.splitlines()[0]) from e


def _column(table, name, path):
    """Values of a column, numbers or words."""
    if name not in table.column_names:
        there = ', '.join(table.column_names)
        raise UserError(f'{path} has no column {name!r}; it has {there}')
    column = table[name]
    if column.null_count:
        raise UserError(f'{path}: column {name!r} has {column.null_count} missing values')
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def _numbers(table, name, path, known):
    """Numbers of the nodes in a column."""
    values = _column(table, name, path)
    if values.dtype.kind != known.dtype.kind:
        raise UserError(f'{path}: column {name!r} is of another type than the nodes')
    at = np.minimum(np.searchsorted(known, values), max(len(known) - 1, 0))
    strange = np.flatnonzero(known[at] != values) if len(known) else np.arange(len(values))
    if len(strange):
        row, where = strange[0], path.with_name(FILES[0])
        raise UserError(
            f'{path} row {row + 1}: {values.tolist()[row]!r} is no node of {where} '
            f'({len(strange)} such rows)'
        )
    return at


def _check_edges(low, high, path, known):
    loops = np.flatnonzero(low == high)
    if len(loops):
        raise UserError(
            f'{path} row {loops[0] + 1}: node {known.tolist()[low[loops[0]]]!r} is its own '
            f'neighbour ({len(loops)} such rows): leave loops out'
        )
    keys = low.astype(np.int64) * len(known) + high
    first = np.unique(keys, return_index=True)[1]
    if len(first) < len(keys):
        again = np.setdiff1d(np.arange(len(keys)), first)
        ends = [known.tolist()[x[again[0]]] for x in (low, high)]
        raise UserError(
            f'{path} row {again[0] + 1}: the edge from {ends[0]!r} to {ends[1]!r} comes twice '
            f'({len(again)} repeats in all): every edge comes once in a direction'
        )


def _labelled(table, path, known):
    """(int32 [N] classes, the three parts or None each)."""
    nodes, labels = _numbers(table, 'node', path, known), _column(table, 'label', path)
    if len(np.unique(nodes)) < len(nodes):
        raise UserError(f'{path}: a node has two labels')
    classes = np.full(len(known), UNKNOWN, np.int32)
    classes[nodes] = np.unique(labels, return_inverse=True)[1].reshape(-1)
    if 'part' not in table.column_names:
        return classes, (None,) * len(PARTS)
    part = table['part'].to_numpy(zero_copy_only=False)
    strange = [x for x in part.tolist() if x is not None and x not in PARTS]
    if strange:
        raise UserError(f'{path} has the part {strange[0]!r}, which is none of {", ".join(PARTS)}')
    return classes, tuple(np.sort(nodes[part == name]).astype(np.int32) for name in PARTS)


def _features(table, path):
    """float32 [nodes, F] of all columns but the id, or None if there are none."""
    made = []
    for name in table.column_names:
        if name == 'node':
            continue
        column = table[name].combine_chunks()
        if column.null_count:
            raise UserError(f'{path}: column {name!r} has {column.null_count} missing values')
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            widths = np.unique(np.diff(column.offsets.to_numpy()))
            if len(widths) > 1:
                raise UserError(f'{path}: lists of column {name!r} are of several lengths')
            column = column.flatten()
        elif pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        try:
            values = column.to_numpy(zero_copy_only=False).astype(np.float32)
        except (TypeError, ValueError) as e:
            raise UserError(f'{path}: feature {name!r} is no number') from e
        if not np.isfinite(values).all():
            raise UserError(f'{path}: feature {name!r} has values that are not finite')
        made.append(values.reshape(len(table), -1))
    return np.concatenate(made, axis=1) if made else None
