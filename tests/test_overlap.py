"""Users of two domains: their rows, the shuffled control, and logs where few have both."""

import numpy as np
import pytest
from test_domains import log, problem_of

from jaxrec.data import domains, overlap
from jaxrec.data.splits import leave_one_out
from jaxrec.errors import UserError
from jaxrec.tasks import next_item

WIDTH = 6


def rows_of(**changes):
    histories = log()
    ends, of_items = leave_one_out(histories).train_ends, domains.find(histories).of_items
    asked = {'width': WIDTH, 'most': 99, **changes}
    return histories, ends, of_items, overlap.overlapped(histories, ends, of_items, **asked)


def test_rows_are_the_newest_training_events_of_users_of_both():
    histories, ends, of_items, (users, rows) = rows_of()
    want = {}
    for user in range(histories.num_users):
        events = histories.items[histories.offsets[user] : ends[user]][-WIDTH:]
        if set(of_items[events[:-1]]) == {1, 2}:
            want[user] = [0] * (WIDTH - len(events)) + events.tolist()
    assert dict(zip(users.tolist(), rows.tolist(), strict=True)) == want
    assert users.tolist() != sorted(users)  # a part of the rows is a fair sample
    assert len(want) > 10
    _, _, _, (few, fewer) = rows_of(most=5)
    np.testing.assert_array_equal(few, users[:5])
    np.testing.assert_array_equal(fewer, rows[:5])


def test_shuffled_rows_have_another_users_events_of_the_second_domain():
    _, _, of_items, (_, rows) = rows_of()
    _, _, _, (_, got) = rows_of(shuffled=True)
    assert (got != rows).mean() > 0.1
    for n, row in enumerate(rows):
        theirs = [item for item in rows[n - 1] if of_items[item] == 2][::-1]
        want, taken = row.copy(), 0
        for place in reversed(range(WIDTH)):
            if of_items[row[place]] == 2:
                want[place] = theirs[taken % len(theirs)]
                taken += 1
        np.testing.assert_array_equal(got[n], want)


def test_a_domain_is_hidden():
    histories = log()
    of_items = domains.find(histories).of_items
    before = [histories.history(u).tolist() for u in range(histories.num_users)]
    both = [u for u, items in enumerate(before) if set(of_items[items]) == {1, 2}]
    for share in (0.25, 0.5):
        got = overlap.hidden(histories, of_items, share)
        found = {0: 0, 1: 0, 2: 0}
        for user, items in enumerate(before):
            kept = got.history(user).tolist()
            times = got.times[got.offsets[user] : got.offsets[user + 1]]
            all_times = histories.times[histories.offsets[user] : histories.offsets[user + 1]]
            lost = set(of_items[items]) - set(of_items[kept])
            assert len(lost) <= (user in both)
            places = [i for i, item in enumerate(items) if of_items[item] not in lost]
            assert kept == [items[i] for i in places]
            np.testing.assert_array_equal(times, all_times[places])
            if user in both:
                found[max(lost, default=0)] += 1
        assert found[0] == int(share * len(both)) and min(found.values()) > 2


def test_what_cannot_be_refuses():
    histories = log()
    of_items = np.minimum(domains.find(histories).of_items, 1)
    with pytest.raises(UserError, match='0 users have training events of both domains'):
        overlap.overlapped(histories, histories.offsets[1:], of_items, WIDTH, 9)
    with pytest.raises(UserError, match='are of two domains, and a log has 3'):
        problem_of(log(names=np.array([b'a', b'b', b'c'])), overlap=0.5)
    with pytest.raises(UserError, match='this model has no support of users to draw'):
        problem_of(log(), support_seed=1)


def test_the_task_trains_and_tests_what_is_left():
    histories = log()
    whole, half = problem_of(histories, in_domain=True), problem_of(histories, overlap=0.5)
    assert len(half.source.items) < len(whole.source.items)
    assert len(half.split.test) <= len(whole.split.test)
    told = next_item.Config(overlap=0.5).protocol_fields()
    assert told['overlap'] == 0.5 and 'overlap' not in next_item.Config().protocol_fields()
    kinds = half.evaluations['test']().result(*[np.zeros(len(half.split.test), int)] * 2).groups
    alone = kinds['history of']["the target's alone"]['examples']
    before = whole.evaluations['test']().result(*[np.zeros(len(whole.split.test), int)] * 2).groups
    assert alone > before['history of']["the target's alone"]['examples']


def test_the_control_keeps_targets_and_what_stands_before_them_of_their_domain():
    histories = log()
    of_items, split = domains.find(histories).of_items, leave_one_out(histories)
    got, shuffled = overlap.with_other_histories(histories, split, of_items)
    assert shuffled.test is split.test and 0 < len(shuffled.valid) < len(split.valid)
    for user, end in zip(shuffled.valid.users, shuffled.valid.ends, strict=True):
        assert of_items[histories.items[end]] == of_items[histories.history(user)[-1]]
    np.testing.assert_array_equal(of_items[got.items], of_items[histories.items])
    for targets in (shuffled.valid, split.test):
        np.testing.assert_array_equal(got.items[targets.ends], histories.items[targets.ends])
    donors, changed = [], 0
    for user in range(histories.num_users):
        old, new = histories.history(user), got.history(user)
        if len(old) < 3:
            continue
        stays = of_items[old] == of_items[old[-1]]
        np.testing.assert_array_equal(new[stays], old[stays])
        free = ~stays
        changed += (old != new).any()
        if free.any():
            donors.append((of_items[old[free]][0], old[free].tolist(), new[free].tolist()))
    assert changed > 10
    apart = {1: [], 2: []}
    for n, old, new in donors:  # of one other user, the newest, again where there are fewer
        others = [theirs for m, theirs, _ in donors if m == n and theirs is not old]
        again = [(theirs * len(new))[-len(new) :] for theirs in others]
        assert new in again
        same = (abs(len(x) - len(old)) for x, y in zip(others, again, strict=True) if y == new)
        apart[n].append(min(same))
    for gaps in apart.values():  # who has fewest has those of who has most
        assert np.median(gaps) <= 1 and sorted(gaps)[-2] <= 8, sorted(gaps)


def test_the_task_takes_the_control():
    problem = problem_of(log(), in_domain=True, shuffled=True)
    assert (problem.source.items != log().items).any()
    assert problem.source.name.endswith('shuffled')
    plain, told = next_item.Config(), next_item.Config(shuffled=True)
    assert told.protocol_fields() == plain.protocol_fields()  # the same targets and candidates
