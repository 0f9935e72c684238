"""Pairs of users and items: what trains as a graph, and batches of them."""

import numpy as np

from jaxrec import problem, rng
from jaxrec.data.histories import Histories
from jaxrec.data.negatives import unseen
from jaxrec.data.ragged import blocks, distinct, part, ranges
from jaxrec.errors import UserError


def training_pairs(histories: Histories, train_ends: np.ndarray) -> np.ndarray:
    """int32 [2, E] users and items of the training events, every pair once, ascending.

    Raises:
      UserError: there are none.
    """
    size, found = histories.num_items + 1, []
    for users in blocks(histories.offsets):
        starts = histories.offsets[users]
        lengths = train_ends[users] - starts
        owner = np.repeat(np.arange(users.start, users.stop), lengths)
        found.append(distinct(owner * size + histories.items[ranges(starts, lengths)]))
    keys = np.concatenate(found)
    if not len(keys):
        raise UserError('no training event is left: there is nothing to train on')
    return np.stack(np.divmod(keys, size)).astype(np.int32)


class PairBatches(problem.Batches):
    """Batches of pairs; an epoch has every pair once, in a new order, or as many drawn by user.

    Args:
      pairs: int32 [2, E] distinct and ascending, see `training_pairs`.
      num_items: of the catalogue.
      rows: B, pairs of a global batch.
      seed: of the order and the negatives.
      negatives: per pair, drawn outside the user's items.
      by_user: a pair is of a user drawn uniformly, and of any of their items alike (`UniformSample`
        of LightGCN's code), so that users of few items weigh as much as others.
      process: (index, count) of this process; it gets its slice of the rows.

    Raises:
      UserError: rows that do not divide over processes; a user who has every item.
    """

    def __init__(
        self,
        pairs: np.ndarray,
        num_items: int,
        *,
        rows: int,
        seed: int,
        negatives: int = 0,
        by_user: bool = False,
        process: tuple[int, int] = (0, 1),
    ):
        if rows % process[1]:
            raise UserError(f'train.batch_rows={rows} does not divide over {process[1]} processes')
        if negatives and np.bincount(pairs[0]).max() >= num_items:
            raise UserError('a user has every item in training: there are no negatives to draw')
        self._pairs, self._num_items, self._negatives = pairs, num_items, negatives
        self._keys = pairs[0].astype(np.int64) * (num_items + 1) + pairs[1]
        self.rows, self._seed, self._process = rows, seed, process
        # where the pairs of each user that has some begin, and how many there are
        found = np.unique(pairs[0], return_index=True, return_counts=True) if by_user else ()
        self._by_user = found[1:]
        self.examples_per_epoch = self.targets_per_epoch = pairs.shape[1]
        self.steps_per_epoch = -(-pairs.shape[1] // rows)
        self.fill = pairs.shape[1] / (rows * self.steps_per_epoch)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`: users (from 0) and targets int32, weights float32, [B / processes].

        With negatives also these, int32 [B / processes, k]. Padding is user 0 and item 0.
        """
        epoch, some = self.place(step, self.examples_per_epoch)
        users, targets = self._pairs[:, self.of_epoch(epoch, self._order)[some]]
        missing = (0, self.rows - len(users))
        batch = {
            'users': np.pad(users, missing),
            'targets': np.pad(targets, missing),
            'weights': np.pad(np.ones(len(users), np.float32), missing),
        }
        if self._negatives:
            generator = rng.host(self._seed, rng.NEGATIVES, step)
            drawn = unseen(generator, users, self._keys, self._num_items, self._negatives)
            batch['negatives'] = np.pad(drawn, (missing, (0, 0)))
        return part(batch, *self._process)

    def _order(self, epoch: int) -> np.ndarray:
        """The pairs of this epoch."""
        generator, count = rng.host(self._seed, rng.ORDER, epoch), self.examples_per_epoch
        if not self._by_user:
            return generator.permutation(count)
        starts, counts = self._by_user
        drawn = generator.integers(len(starts), size=count)
        return starts[drawn] + generator.integers(counts[drawn])


class DomainPairBatches(problem.Batches):
    """Batches of pairs, every second one of the other of two domains, with what else users have.

    A domain's pairs come once before they come again, each time in a new order; an epoch is over
    when those of the larger domain have come. So both domains have as many rows in every step.

    Args:
      histories: the events.
      train_ends: int64 [U], absolute end of each user's training events.
      of_items: int32 [num_items + 1], 1 or 2, see `data.domains`.
      rows: of a global batch, an even number in every process.
      seed: of the order, the negatives and the context.
      negatives: per pair, of the pair's domain, drawn outside the user's items.
      context: most items of either domain that come with a pair.
      process: (index, count) of this process; it gets its slice of the rows.

    Raises:
      UserError: rows that do not divide, a domain without pairs, a user who has all of one.
    """

    def __init__(
        self,
        histories: Histories,
        train_ends: np.ndarray,
        of_items: np.ndarray,
        *,
        rows: int,
        seed: int,
        negatives: int,
        context: int,
        process: tuple[int, int] = (0, 1),
    ):
        if rows % (2 * process[1]):
            raise UserError(
                f'train.batch_rows={rows} holds pairs of two domains in turns: it must be a '
                f'multiple of {2 * process[1]}'
            )
        self._negatives, self._context, self._process = negatives, context, process
        self.rows, self._seed = rows, seed
        starts = histories.offsets[:-1]
        lengths = train_ends - starts
        owner = np.repeat(np.arange(histories.num_users), lengths)
        items = histories.items[ranges(starts, lengths)]
        self._by_domain, self._epoch = [], {}
        for domain in (1, 2):
            here = of_items[items] == domain
            number = np.cumsum(of_items == domain)  # of an item within its domain
            size = int(number[-1])
            keys = distinct(owner[here].astype(np.int64) * (size + 1) + number[items[here]])
            if not len(keys):
                raise UserError(f'domain {domain} of {histories.name} has no training pair')
            if np.bincount(keys // (size + 1)).max() >= size:
                raise UserError('a user has every item of a domain: no negatives are to be drawn')
            counts = np.bincount(owner[here], minlength=histories.num_users)
            self._by_domain.append(
                {
                    'keys': keys,
                    'size': size,
                    'items': np.flatnonzero(np.pad((of_items == domain)[1:], (1, 0))),
                    'history': items[here],  # of user after user, in the order of the log
                    'starts': np.cumsum(counts) - counts,
                    'counts': counts,
                }
            )
        pairs = [len(one['keys']) for one in self._by_domain]
        self.steps_per_epoch = -(-2 * max(pairs) // rows)
        self.examples_per_epoch = self.targets_per_epoch = self.steps_per_epoch * rows

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step`: users (from 0), targets, domain int32, weights float32 [B].

        Row 0, 2, .. is of domain 1, row 1, 3, .. of domain 2. negatives: int32 [B, k]. items: int32
        [B, 2 context], items that the user has besides the target, of domain 1 and then of domain
        2, a random nine in ten of them (one at least), in the order of the log; 0 is padding.
        """
        half, found = self.rows // 2, []
        for n, one in enumerate(self._by_domain):
            count = len(one['keys'])
            place = step * half + np.arange(half)
            epoch, nth = np.divmod(place, count)
            chosen = np.empty(half, np.int64)
            for e in np.unique(epoch).tolist():
                chosen[epoch == e] = self._order(n, e, count)[nth[epoch == e]]
            users, local = np.divmod(one['keys'][chosen], one['size'] + 1)
            generator = rng.host(self._seed, rng.NEGATIVES, 2 * step + n)
            drawn = unseen(generator, users, one['keys'], one['size'], self._negatives)
            targets = one['items'][local - 1]
            context = [self._others(generator, d, users, targets) for d in self._by_domain]
            found.append(
                {
                    'users': users,
                    'targets': targets,
                    'domain': np.full(half, n + 1),
                    'negatives': one['items'][drawn - 1],
                    'items': np.concatenate(context, axis=1),
                }
            )
        batch = {
            name: np.stack([x[name] for x in found], axis=1).reshape(self.rows, *x0.shape[1:])
            for name, x0 in found[0].items()
        }
        batch = {name: column.astype(np.int32) for name, column in batch.items()}
        return part({**batch, 'weights': np.ones(self.rows, np.float32)}, *self._process)

    def _others(self, generator, one, users, targets):
        """int64 [n, context], see `__call__`."""
        counts = one['counts'][users]
        row = np.repeat(np.arange(len(users)), counts)
        items = one['history'][ranges(one['starts'][users], counts)]
        kept = items != targets[row]
        row, items = row[kept], items[kept]
        counts = np.bincount(row, minlength=len(users))
        order = np.lexsort((generator.random(len(row)), row))
        wanted = np.minimum(-(-9 * counts // 10), self._context)
        first = np.cumsum(counts) - counts
        chosen = np.sort(order[ranges(first, wanted)])
        out = np.zeros((len(users), self._context), np.int64)
        out[row[chosen], ranges(np.zeros_like(wanted), wanted)] = items[chosen]
        return out

    def _order(self, domain: int, epoch: int, count: int) -> np.ndarray:
        """Of a domain's pairs the `epoch`-th time."""
        if (domain, epoch) not in self._epoch:
            mine = {key: kept for key, kept in self._epoch.items() if key[0] != domain}
            generator = rng.host(self._seed, rng.ORDER, 2 * epoch + domain)
            self._epoch = {**mine, (domain, epoch): generator.permutation(count)}
        return self._epoch[domain, epoch]
