"""Items by themselves: which are clicked together, and batches of items that tell them apart."""

import numpy as np
import scipy.sparse

from jaxrec import problem, rng
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import part
from jaxrec.errors import UserError

DISTANCE = 3  # places of a history within which two items are clicked together
HOW = ('lowest', 'low', 'random')
_LOW = 0.1


def co_clicks(
    histories: Histories, train_ends: np.ndarray, distance: int = DISTANCE
) -> scipy.sparse.csr_array:
    """float32 [num_items + 1, num_items + 1]: how often two items are near in training histories.

    Args:
      histories: the events.
      train_ends: int64 [U], absolute end of each user's training events.
      distance: at most so many places apart. An item is not near itself.
    """
    owner = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    trains = np.arange(len(owner)) < train_ends[owner]
    shape = (histories.num_items + 1,) * 2
    total = scipy.sparse.csr_array(shape, dtype=np.float32)
    for apart in range(1, distance + 1):
        same = (owner[apart:] == owner[:-apart]) & trains[apart:]
        first, second = histories.items[:-apart][same], histories.items[apart:][same]
        other = first != second
        ones = np.ones(int(other.sum()), np.float32)
        total = total + scipy.sparse.csr_array((ones, (first[other], second[other])), shape)
    return scipy.sparse.csr_array(total + total.T)


def unlike(
    clicks: scipy.sparse.csr_array,
    items: np.ndarray,
    titles: np.ndarray,
    generator: np.random.Generator,
    how: str = 'lowest',
) -> np.ndarray:
    """int64 [B], the place in the batch of each item's negative; -1 where there is none.

    Never the item itself, one of the same title, or one that was clicked together with it. Of the
    others the one of the lowest click similarity, the cosine of their rows of `clicks`; of equals
    one by chance.

    Args:
      clicks: of `co_clicks`.
      items: int [B] item numbers.
      titles: int [B], equal where the titles are.
      generator: of chance.
      how: 'lowest', any of the lowest tenth ('low'), or any at all ('random').
    """
    rows = clicks[items]
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(1))).reshape(-1)
    scaled = scipy.sparse.diags_array(1 / np.maximum(length, 1e-12)) @ rows
    similar = np.asarray((scaled @ scaled.T).toarray(), np.float64).round(6)
    allowed = (titles[:, None] != titles) & (rows[:, items].toarray() == 0)
    similar = np.where(allowed, similar * (how != 'random'), np.inf)
    chance = generator.random(similar.shape)
    order = np.lexsort((chance, similar), axis=1)
    nth = np.zeros(len(items), np.int64)
    if how == 'low':
        nth = (generator.random(len(items)) * np.ceil(_LOW * allowed.sum(1))).astype(np.int64)
    chosen = np.take_along_axis(order, nth[:, None], 1)[:, 0]
    return np.where(allowed.any(1), chosen, -1)


class ItemBatches(problem.Batches):
    """Batches of items that have a text; an epoch has each once, in a new order.

    Args:
      clicks: of `co_clicks`.
      titles: int64 [num_items + 1], equal where the titles are; 0 = no text.
      rows: B, items of a global batch.
      seed: of the order and the draws.
      how: negatives are chosen, see `unlike`.
      process: (index, count) of this process; it gets its slice of the rows.

    Raises:
      UserError: rows that do not divide over processes; no item has a text.
    """

    def __init__(
        self,
        clicks: scipy.sparse.csr_array,
        titles: np.ndarray,
        *,
        rows: int,
        seed: int,
        how: str = 'lowest',
        process: tuple[int, int] = (0, 1),
    ):
        if rows % process[1]:
            raise UserError(f'train.batch_rows={rows} does not divide over {process[1]} processes')
        self._items = np.flatnonzero(titles)
        if not len(self._items):
            raise UserError('no item has a text with a known word: there is nothing to learn')
        self._clicks, self._titles, self._how = clicks, titles, how
        self.rows, self._seed, self._process = rows, seed, process
        count = len(self._items)
        self.examples_per_epoch = self.targets_per_epoch = count
        self.steps_per_epoch = -(-count // rows)
        self.fill = count / (rows * self.steps_per_epoch)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`: int32 [B / processes] each, and weights float32.

        `items`; `negatives`, 0 = none; `near`, an item clicked together with it, by how often, 0 =
        none; `titles`, equal where the titles are. Padding is 0.
        """
        epoch, some = self.place(step, self.examples_per_epoch)
        items = self.of_epoch(epoch, self._order)[some]
        generator = rng.host(self._seed, rng.NEGATIVES, step)
        titles = self._titles[items]
        places = unlike(self._clicks, items, titles, generator, self._how)
        missing = (0, self.rows - len(items))
        batch = {
            'items': items,
            'negatives': np.where(places >= 0, items[places], 0),
            'near': self._near(items, generator),
            'titles': titles,
        }
        batch = {name: np.pad(x, missing).astype(np.int32) for name, x in batch.items()}
        batch['weights'] = np.pad(np.ones(len(items), np.float32), missing)
        return part(batch, *self._process)

    def _order(self, epoch):
        return rng.host(self._seed, rng.ORDER, epoch).permutation(self._items)

    def _near(self, items, generator):
        rows = self._clicks[items]
        before = np.concatenate([[0], np.cumsum(rows.data, dtype=np.float64)])
        first, last = before[rows.indptr[:-1]], before[rows.indptr[1:]]
        drawn = first + generator.random(len(items)) * (last - first)
        at = np.searchsorted(before, drawn, side='right') - 1
        return np.where(last > first, rows.indices[np.minimum(at, len(rows.indices) - 1)], 0)
