"""Attributes of events and items, as an experiment declares them; `codes` makes integers of them.

A feature names a column of the histories, of events (a rating, a play time) or of items (a
duration, tags). Its values become codes: 0 for a missing one and for padding, 1..size, and size + 1
for everything beyond. The codes arrive in batches as 'feature.COLUMN'; the model looks them up.
"""

import dataclasses
import math

from jaxrec.cli import UserError

GAP = 'gap'  # built in: time since the user's event before, in the unit of the times
KINDS = ('category', 'set', 'uniform', 'log', 'quantile')
PREFIX = 'feature.'  # of the keys in a batch


@dataclasses.dataclass
class Feature:
    """One attribute of an event or of its item.

    kind            values                                    code
    category        whole numbers 0 .. size - 1               1 + value
    set             of an item: T numbers 1 .. size, or 0     the numbers (the model averages them)
    uniform         0 <= value < cap, equal widths            1 + floor(size value / cap)
    log             0 <= value < cap, equal ratios            1 + floor(size log(1 + value) /
                                                              log(1 + cap))
    quantile        any; buckets of equally many training     1 + number of edges <= value
                    events

    Values beyond (a category of size or more, cap or more, more than any in training) share code
    size + 1. NaN, and negative values but for quantile, are missing: code 0.
    """

    column: str  # of the histories' event or item columns, or 'gap'
    kind: str = 'category'
    size: int = 2  # categories, or buckets
    cap: float = 0.0  # uniform and log: where the overflow bucket begins

    @property
    def rows(self) -> int:
        """Of its table: codes 0 .. size + 1."""
        return self.size + 2

    @property
    def key(self) -> str:
        """In a batch."""
        return PREFIX + self.column


def check_features(features: tuple[Feature, ...]) -> None:
    """Raises UserError for a feature that cannot be."""
    names = [feature.column for feature in features]
    for feature in features:
        name = f'feature {feature.column!r}'
        if names.count(feature.column) > 1:
            raise UserError(f'{name} is given twice')
        if feature.kind not in KINDS:
            raise UserError(f'{name}: kind={feature.kind!r} is not one of {", ".join(KINDS)}')
        if feature.size < 1:
            raise UserError(f'{name}: size={feature.size} must be at least 1')
        if feature.kind in ('uniform', 'log') and not 0 < feature.cap < math.inf:
            raise UserError(f'{name}: kind={feature.kind} needs cap > 0, not {feature.cap}')
