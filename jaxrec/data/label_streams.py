"""Label streams: when a stream of training rows says what came of a visit to a live room.

A visit begins when the room is shown, and may bring behaviours (a click, a like, a gift) some
seconds later, of which only the first of its kind counts. A stream reports of it, in rows of known
and unknown labels:

    fast_slow      after `fast` seconds all labels as they are by then; after `slow` seconds the
                   positives that came since, to be taken back as negatives; later ones are lost
    moment         every `window` seconds since the visit began the behaviours that are new; at the
                   exit those that never came, as negatives (Moment&Cross, arXiv 2408.05709)
    sliver         the same in windows of one clock for all visits; labels but the first are of
                   visits with the first alone (Sliver, arXiv 2402.14399)
    fake_negative  at once that nothing came, and each behaviour when it comes (arXiv 1907.06558)
    oracle         at once what will come, which nobody can know

Positives are learnt once in each. Of `sliver` the windows' common clock, and that a behaviour that
was reported is not denied at the exit, are our reading.
"""

import dataclasses

import numpy as np

STREAMS = ('fast_slow', 'moment', 'sliver', 'fake_negative', 'oracle')


@dataclasses.dataclass
class Visits:
    """What came of N visits, of T behaviours.

    Attributes:
      times: [N], seconds, when they began.
      stay: [N], seconds until the exit.
      after: [N, T], seconds until the first behaviour of its kind, at most `stay`; NaN = none.
    """

    times: np.ndarray
    stay: np.ndarray
    after: np.ndarray


@dataclasses.dataclass
class Reports:
    """What a stream says, n rows in order of (time, visit).

    Attributes:
      times: float64 [n], seconds, when it is said.
      visits: int64 [n], of which visit.
      labels: float32 [n, T].
      mask: float32 [n, T], 1 where the label is told.
      missed: float32 [n, T], 1 where a positive was told as a negative before; mask is 0 there.
    """

    times: np.ndarray
    visits: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    missed: np.ndarray

    def __len__(self) -> int:
        return len(self.times)


def first_after(visits: np.ndarray, seconds: np.ndarray, count: int) -> np.ndarray:
    """float64 [count], the least seconds of each visit; NaN of one that has none.

    Args:
      visits: int [m], whose behaviour it was.
      seconds: [m], when.
      count: of the visits.
    """
    first = np.full(count, np.inf)
    np.minimum.at(first, visits, seconds)
    return np.where(np.isinf(first), np.nan, first)


def reports(
    stream: str, visits: Visits, *, window: int = 30, fast: int = 300, slow: int = 3600
) -> Reports:
    """What `stream`, one of STREAMS, says of the visits.

    Args:
      stream: see the module.
      visits: all of them.
      window: seconds of moment and sliver.
      fast, slow: seconds of fast_slow.
    """
    began = np.asarray(visits.times, np.float64)[:, None]
    after = np.asarray(visits.after, np.float64)
    stay = np.asarray(visits.stay, np.float64)[:, None]
    came = ~np.isnan(after)
    everywhere = np.ones(after.shape, bool)
    if stream == 'oracle':
        return _gathered((began, everywhere, came, False))
    if stream == 'fake_negative':
        return _gathered(
            (began, everywhere, ~everywhere, False), (began + after, came, came, False)
        )
    if stream == 'fast_slow':
        late = came & (after > fast) & (after <= slow)
        known = came & (after <= fast)
        return _gathered((began + fast, everywhere, known, False), (began + slow, late, late, True))
    if stream == 'moment':
        new = np.minimum(np.maximum(np.ceil(after / window), 1) * window, stay)
        return _gathered((began + np.where(came, new, stay), everywhere, came, False))
    if stream == 'sliver':
        known = np.fmax(after, after[:, :1])  # a like before the click is told with the click
        ends = window * np.ceil((began + np.where(came, known, stay)) / window)
        of_first = everywhere.copy()
        of_first[:, 1:] = came[:, :1]
        return _gathered((ends, of_first, came, False))
    raise ValueError(f'stream={stream!r} is not one of {", ".join(STREAMS)}')


def _gathered(*told):
    """Reports of (times [N, 1 or T], where bool [N, T] it is told, labels [N, T], missed)."""
    parts = []
    for times, where, labels, missed in told:
        visit, column = np.nonzero(where)
        times = np.broadcast_to(times, where.shape)[where]
        parts.append((times, visit, column, labels[where], np.full(len(visit), missed)))
    times, visits, columns, labels, missed = map(np.concatenate, zip(*parts, strict=True))
    order = np.lexsort((visits, times))
    times, visits, columns = times[order], visits[order], columns[order]
    new = np.ones(len(times), bool)
    new[1:] = (times[1:] != times[:-1]) | (visits[1:] != visits[:-1])
    place = (np.cumsum(new) - 1, columns)
    shape = (int(new.sum()), told[0][1].shape[1])

    def filled(values):
        out = np.zeros(shape, np.float32)
        out[place] = values[order]
        return out

    return Reports(times[new], visits[new], filled(labels), filled(~missed), filled(missed))
