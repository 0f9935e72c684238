"""Suite lists: what a program that serves asks for, one history or many at once."""

import statistics
import time
from collections.abc import Sequence

import numpy as np

import jaxrec.api
from jaxrec.benchmarks import measure
from jaxrec.benchmarks.peer import K
from jaxrec.benchmarks.runs import served_run
from jaxrec.cli import say
from jaxrec.data.catalogue import plain
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment

SIZES = {'many': 256, 'at_once': 8}  # histories of a call, such calls of a turn
_ONE_BY_ONE = 200  # calls of a turn


def measure_lists(
    experiment: Experiment | None, workdir: str | None, *, repeats: int, peer=None
) -> dict:
    """`jaxrec.load(run).recommend` after raw histories: 256 at once, and one by one.

    A turn takes 8 calls of 256 users of the test split and 200 calls of one, all different; the
    peer then does the same. The parameters are those of one step: time does not depend on them.

    Args:
      experiment, workdir: see `served_run`.
      repeats: number of turns.
      peer: None, or a function (experiment, problem, users) -> `peer.Peer`.

    Returns:
      JSON-ready; `ours`, `peer` and `ratio` are users/s of 256 at once, `one` has the milliseconds
      of a call of one.
    """
    with served_run(experiment, workdir) as folder:
        recommender = jaxrec.api.load(folder, k=K)
        recommender.warm_up()
        problem = recommender.trained.problem
        users, raw = histories(problem, SIZES['many'] * SIZES['at_once'] + _ONE_BY_ONE)
        other = peer(recommender.trained.experiment, problem, users) if peer else None
        turns = []
        for number in range(repeats):
            turns.append(_turn(timed(recommender.recommend, raw), other and other.measure()))
            say(f'{number + 1}/{repeats}  {_line(turns[-1])}')
        if other:
            other.close()

    def median(name):
        values = [turn[name] for turn in turns]
        return None if None in values else statistics.median(values)

    return {
        'unit': 'users/s',
        **{name: median(name) for name in turns[0]},
        'turns': turns,
        'users_at_once': SIZES['many'],
        'p99_over_p50': median('one_p99_ms') / median('one_ms'),
        'peak_memory_mib': measure.peak_memory(),
        'peer_about': other.about if other else None,
        'matmul_gflops': None,
        'data_hash': problem.data_hash,
    }


def histories(problem, count: int) -> tuple[np.ndarray, list[list]]:
    """Users of the test split, spread over it, and their raw histories before the target."""
    split, known = problem.split.test, problem.source
    if len(split.users) < count:
        raise UserError(f'suite lists needs {count:,} test users; the data have {len(split.users)}')
    places = np.linspace(0, len(split.users) - 1, count).astype(int)
    users, ends = split.users[places], split.ends[places]
    ids = known.item_ids
    whole = (known.items[known.offsets[u] : e] for u, e in zip(users, ends, strict=True))
    return users, [[plain(ids[n - 1]) for n in one] for one in whole]


def timed(call, given: Sequence) -> dict:
    """{'seconds', 'count'} of the calls of many, 'milliseconds' of each of one.

    What the peer's process does with its own: see `rectools_peer`.
    """
    size, whole = SIZES['many'], SIZES['many'] * SIZES['at_once']
    many, single = given[:whole], given[whole:]
    started = time.perf_counter()
    for first in range(0, len(many), size):
        call(many[first : first + size])
    seconds, each = time.perf_counter() - started, []
    for one in single:
        started = time.perf_counter()
        call([one])
        each.append((time.perf_counter() - started) * 1e3)
    return {'seconds': seconds, 'count': len(many), 'milliseconds': each}


def _turn(ours, theirs):
    found = {}
    for name, told in (('ours', ours), ('peer', theirs)):
        found[name] = told and told['count'] / told['seconds']
        prefix = 'one' if name == 'ours' else 'peer_one'
        for end, share in (('ms', 0.5), ('p99_ms', 0.99)):
            value = told and float(np.quantile(told['milliseconds'], share))
            found[f'{prefix}_{end}'] = value
    found['ratio'] = theirs and found['ours'] / found['peer']
    found['one_ratio'] = theirs and found['peer_one_ms'] / found['one_ms']
    return found


def _line(turn):
    text = f'{turn["ours"]:,.0f} users/s, one in {turn["one_ms"]:.2f} ms'
    text += f' (99 %: {turn["one_p99_ms"]:.2f})'
    if turn['ratio']:
        text += (
            f'; the peer {turn["peer"]:,.0f} users/s, {turn["peer_one_ms"]:.1f} ms: '
            f'ratios {turn["ratio"]:.1f}, {turn["one_ratio"]:.1f}'
        )
    return text
