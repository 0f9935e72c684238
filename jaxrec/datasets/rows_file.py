"""Your own rows: a table of impressions with declared labels and fields, see `log_file`.

The file is read as strictly as a log of events. What is missing (null, empty, NaN) is told apart
from every value: of a label it means that the outcome is not known, of a number NaN, of a category
-1, of a set nothing; a user, an item or a time must be there.
"""

import dataclasses

import numpy as np

from jaxrec.config import Data
from jaxrec.data.rows import Columns, Rows
from jaxrec.datasets import events, log_file
from jaxrec.errors import UserError


def read(config: Data, columns: Columns) -> Rows:
    """Rows of config.log, oldest first; rows of equal times, or of no time, in the file's order.

    Users and items are numbered by ascending raw id, as are the values of a category (from 0) and
    of a set (from 1). A set of items has the items' numbers; one that is no item of a row has the
    number after them. All features are of the row, but for the domain, which is of the item; the
    time is one, under its own name.

    Args:
      config: says where the file is and how it is written.
      columns: what to read of it.

    Raises:
      UserError: as `log_file.read`, or a label that is neither 0 nor 1.
    """
    if config.domain_col and not columns.domain:
        raise UserError('--domain_col is for logs of events: of rows it is a column like others')
    if columns.domain and not config.domain_col:
        raise UserError('name the column of the domains of items with --domain_col')
    if config.features:
        raise UserError(
            '--features is for logs of events: of rows, task.fields and task.labels name columns'
        )
    if config.min_user or config.min_item:
        raise UserError('--min_user and --min_item are for histories, not rows')
    words = (*columns.categories, *columns.sets, *columns.sets_of_items)
    numbers = (*columns.labels, *columns.numbers)
    twice = [name for name in words if name in numbers]
    if twice:
        raise UserError(f'column {twice[0]!r} cannot be both a number or label and words')
    named = dataclasses.replace(config, features=','.join(dict.fromkeys((*numbers, *words))))
    raw = log_file.read_domains(named) if columns.domain else log_file.read(named, words=words)
    name = log_file.named(config)
    if not len(raw.users.codes):
        raise UserError(f'no rows in {name}')
    users, user_ids = events.number(raw.users)
    items, item_ids = events.number(raw.items)
    times = np.zeros(len(users), np.int64)
    if raw.times is not None:
        times = events.integer_times(raw.times, name)
    order = np.argsort(times, kind='stable')
    labels = {
        label: _label(raw.features[label], label, name, columns.quantities)
        for label in columns.labels
    }
    features = {one: raw.features[one] for one in columns.numbers}
    features |= {one: _categories(raw.words[one], one, name) for one in columns.categories}
    features |= {one: _sets(raw.words[one]) for one in columns.sets}
    features |= {one: _sets(raw.words[one], item_ids) for one in columns.sets_of_items}
    if config.time_col:
        features.setdefault(config.time_col, times)
    return Rows(
        users=users[order],
        items=items[order] + np.int32(1),
        times=times[order],
        user_ids=user_ids,
        item_ids=item_ids,
        features={one: _compact(column)[order] for one, column in features.items()},
        item_features={
            one: events.by_item(item_ids, *column) for one, column in raw.item_features.items()
        },
        labels={label: values[order] for label, values in labels.items()},
        name=name,
    )


def _label(values: np.ndarray, label: str, name: str, quantity: bool) -> np.ndarray:
    """float32, NaN where it is not known."""
    wrong = ~(np.isnan(values.astype(np.float64)) | (values == 0) | (values == 1))
    if wrong.any() and not quantity:
        at = int(wrong.argmax())
        raise UserError(
            f'{name} row {at + 1}: {values[at]:g} in column {label!r} is no label, which is 0, 1 '
            'or missing'
        )
    return values.astype(np.float32)


def _categories(column: events.Words, field: str, name: str) -> np.ndarray:
    """int32 [N], -1 = missing."""
    if column.counts.max(initial=0) > 1:
        at = int((column.counts > 1).argmax())
        raise UserError(
            f'{name} row {at + 1} has {column.counts[at]} words in column {field!r}, parted by '
            "blanks or in a list: use kind='set', or write them as one"
        )
    out = np.full(len(column.counts), -1, np.int32)
    out[column.counts > 0] = events.number(column.coded)[0]
    return out


def _sets(column: events.Words, ids: np.ndarray | None = None) -> np.ndarray:
    """int32 [N, most], numbers from 1, padded with 0; those of `ids`, or of its own words."""
    numbers, own = events.number(column.coded)
    numbers = numbers + np.int32(1)
    if ids is not None:
        if own.dtype.kind != ids.dtype.kind:
            own, ids = own.astype('S'), ids.astype('S')
        order = np.argsort(ids)
        at = np.minimum(np.searchsorted(ids, own, sorter=order), len(ids) - 1)
        known = np.where(ids[order[at]] == own, order[at] + 1, len(ids) + 1)
        numbers = known.astype(np.int32)[numbers - 1]
    counts = column.counts
    out = np.zeros((len(counts), max(int(counts.max(initial=0)), 1)), np.int32)
    row = np.repeat(np.arange(len(counts)), counts)
    out[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = numbers
    return out


def _compact(column: np.ndarray) -> np.ndarray:
    """Quantities as float32; whole numbers and sets as they are."""
    return column.astype(np.float32) if column.dtype.kind == 'f' else column
