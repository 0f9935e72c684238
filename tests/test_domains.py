"""Domains of items: twins, one domain of a log, and ranks in the target's domain, against loops."""

import itertools

import numpy as np
import pytest
from real_data import real_data
from runs import check_members
from test_ranking import ITEMS, MAX_LEN, build, make_table, slow_scores

from jaxrec import datasets
from jaxrec.config import Data
from jaxrec.data import domains, splits
from jaxrec.data.histories import Histories
from jaxrec.data.splits import leave_one_out
from jaxrec.datasets import two_domains
from jaxrec.datasets.events import to_histories
from jaxrec.devices import top_k
from jaxrec.devices.mesh import put_whole
from jaxrec.devices.top_k import UNREACHABLE
from jaxrec.errors import UserError
from jaxrec.evaluation.run import Pass
from jaxrec.experiment import Experiment, check
from jaxrec.models import sasrec
from jaxrec.tasks import next_item

NAMES = np.array([b'food', b'kitchen'])
USERS = 60


def log(seed=0, users=USERS, names=NAMES, count=ITEMS, **changes):
    """Histories of items in domains that alternate; some users have one alone, or until the end."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice(np.r_[0:6, 19:24], users)
    of_items = rng.integers(0, len(names), count)
    of_items[: len(names)] = np.arange(len(names))
    items = rng.integers(1, count + 1, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    food = np.flatnonzero(of_items == 0) + 1
    for user in range(0, users, 5):
        mine = slice(offsets[user], offsets[user + 1])
        items[mine] = rng.choice(food, lengths[user])
    for user in range(1, users, 5):
        mine = slice(offsets[user], max(offsets[user + 1] - 1, offsets[user]))
        items[mine] = rng.choice(food, mine.stop - mine.start)
    return Histories(
        items=items,
        offsets=offsets,
        user_ids=np.arange(users),
        item_ids=np.arange(count),
        times=np.concatenate([np.sort(rng.integers(0, 99, n)) for n in lengths]),
        item_features={'domain': names[of_items]},
        name='a log',
        **changes,
    )


def problem_of(histories, **task):
    task = next_item.Config(**{'cutoffs': (1, 10), **task})
    experiment = Experiment(model=sasrec.Config(max_len=MAX_LEN), task=task, data=Data())
    check(experiment)
    return next_item.NextItem(experiment, histories, {'data_hash': '', 'path': ''})


def measured(problem, table, which='test', **options):
    graphdef, params = build(table)
    evaluation = problem.evaluations[which]()
    constants = {n: np.asarray(v) for n, v in problem.constants.items()}
    return evaluation, Pass(graphdef, problem, put_whole(constants))(params, evaluation, **options)


def slow(histories, targets, table, domain, filter_seen):
    """[(greater, ties)] of every target among the items of its own domain."""
    out = []
    for user, end in zip(targets.users, targets.ends, strict=True):
        start, target = histories.offsets[user], histories.items[end]
        seen = set(histories.items[start:end].tolist()) if filter_seen else set()
        scores = slow_scores(table, histories, start, end).max(0)
        others = [
            scores[i]
            for i in range(1, ITEMS + 1)
            if i != target and i not in seen and domain[i - 1] == domain[target - 1]
        ]
        if target in seen:
            out.append((UNREACHABLE, 0))
        else:
            beat = sum(s > scores[target] for s in others)
            out.append((beat, sum(s == scores[target] for s in others)))
    return np.array(out).T


@pytest.mark.parametrize('filter_seen, shape', [(True, (1, 1)), (False, (1, 1)), (True, (2, 2))])
def test_ranks_in_the_targets_domain(mesh, filter_seen, shape, monkeypatch):
    """The whole table at once, or on several devices in pieces."""
    mesh(*shape)
    if shape != (1, 1):
        monkeypatch.setattr(top_k, '_MOST_SCORES', 1 << 10)
    histories, table = log(names=np.array([b'a', b'b', b'c'])), make_table()
    problem = problem_of(histories, in_domain=True, filter_seen=filter_seen, batch_users=8)
    evaluation, found = measured(problem, table, full=True)
    domain = histories.item_features['domain']
    want = slow(histories, problem.split.test, table, domain, filter_seen)
    np.testing.assert_array_equal(found.kept['greater'], want[0])
    np.testing.assert_array_equal(found.kept['ties'], want[1])
    assert evaluation.protocol['in_domain'] is True
    check_members(found)
    assert {'domain', 'history of', 'popularity'} <= found.members.keys()
    sizes = {n: g['examples'] for n, g in found.groups['domain'].items()}
    target = domain[evaluation.items - 1]
    assert sizes == {n: int((target == n.encode()).sum()) for n in 'abc'}
    hits = np.clip(10 - want[0], 0, want[1] + 1) / (want[1] + 1)  # of tied items each place alike
    by_domain = [hits[target == n.encode()].mean() for n in 'abc']
    assert found.metrics['HR@10 macro'] == pytest.approx(np.mean(by_domain))
    assert found.metrics['HR@10 macro'] != pytest.approx(found.metrics['HR@10'])


def test_what_users_had_before():
    """Groups by the domains of the history, against a loop."""
    histories = log()
    found = domains.find(histories)
    domain = histories.item_features['domain']
    test = leave_one_out(histories).test
    want = []
    for user, end in zip(test.users, test.ends, strict=True):
        had = set(domain[histories.items[histories.offsets[user] : end] - 1].tolist())
        own = domain[histories.items[end] - 1]
        kinds = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}
        want.append(kinds[own in had, bool(had - {own})])
    np.testing.assert_array_equal(found.kinds(test.ends, histories.items[test.ends]), want)
    assert {0, 1, 2} <= set(want)


def test_off_is_as_if_there_were_no_domains(mesh):
    """Without task.in_domain the ranks, lists and constants are those of a log without domains."""
    mesh(1, 1)
    histories, table = log(), make_table()
    plain = problem_of(log())
    plain.source.item_features.clear()
    bare = problem_of(plain.source)
    one, other = measured(problem_of(histories), table)[1], measured(bare, table)[1]
    np.testing.assert_array_equal(one.kept['greater'], other.kept['greater'])
    assert one.metrics == other.metrics and 'domain' in one.groups and 'domain' not in other.groups
    assert 'domains' not in problem_of(histories).constants
    assert (
        problem_of(histories).evaluations['test']().protocol == bare.evaluations['test']().protocol
    )


@pytest.mark.parametrize('protocol', ['full', 'uniform', 'popularity'])
def test_one_domain_has_the_targets_and_candidates_of_the_merged_log(mesh, protocol):
    """A kind of comparison: a model of one domain beside one of both, on the very same rows."""
    mesh(1, 1)
    histories = log()
    settings = {'protocol': protocol, 'negatives': 9}
    merged = problem_of(histories, in_domain=True, **settings).evaluations['test']()
    for name in ('food', 'kitchen'):
        problem = problem_of(histories, domain=name, in_domain=True, **settings)
        alone, kept = problem.evaluations['test'](), problem.source
        mine = np.flatnonzero(histories.item_features['domain'][merged.items - 1] == name.encode())
        ids = kept.item_ids
        np.testing.assert_array_equal(alone.targets.users, merged.targets.users[mine])
        np.testing.assert_array_equal(ids[alone.items - 1], merged.items[mine] - 1)
        assert set(kept.item_features['domain'].tolist()) == {name.encode()}
        if protocol != 'full':
            drawn = merged.candidates(mine)
            got = alone.candidates(np.arange(alone.examples))
            np.testing.assert_array_equal(np.where(got > 0, ids[got - 1] + 1, 0), drawn)
            domain = histories.item_features['domain']
            assert set(domain[drawn[drawn > 0] - 1].tolist()) == {name.encode()}
        popular = [e.references()['popularity'].kept['greater'] for e in (alone, merged)]
        np.testing.assert_array_equal(popular[0], popular[1][mine])
        for user in range(USERS):  # the events that train, in order
            start, end = histories.offsets[user], leave_one_out(histories).train_ends[user]
            events = histories.items[start:end]
            want = events[histories.item_features['domain'][events - 1] == name.encode()] - 1
            got = kept.items[kept.offsets[user] : problem.split.train_ends[user]]
            np.testing.assert_array_equal(ids[got - 1], want)


def slow_baseline(name, histories, split, ranking, n):
    """Scores of all items 1.. of target n by a baseline, from events one by one."""
    domain = histories.item_features['domain']
    user, end, item = ranking.targets.users[n], ranking.targets.ends[n], ranking.items[n]
    own = domain[item - 1]
    history = histories.items[histories.offsets[user] : end]
    training = [
        histories.items[histories.offsets[u] : split.train_ends[u]].tolist() for u in range(USERS)
    ]
    popular = np.bincount(np.concatenate(training).astype(int), minlength=ITEMS + 1)
    if name == 'popularity':
        return [(popular[j],) for j in range(1, ITEMS + 1)]
    if name == 'markov_in_domain':
        mine = [i for i in history if domain[i - 1] == own]
        follow = np.zeros((ITEMS + 1, ITEMS + 1), int)
        for events in training:
            alone = [i for i in events if domain[i - 1] == own]
            for one, other in itertools.pairwise(alone):
                follow[one, other] += 1
        last = mine[-1] if mine else 0
        return [(follow[last, j], popular[j]) for j in range(1, ITEMS + 1)]
    ends = {u: split.train_ends[u] for u in range(USERS)}
    for u, e in zip(ranking.targets.users, ranking.targets.ends, strict=True):
        ends[u] = max(ends[u], e)
    before = [set(histories.items[histories.offsets[u] : ends[u]].tolist()) for u in range(USERS)]
    keep = {
        'items_own': lambda i: domain[i - 1] == own,
        'items_other': lambda i: domain[i - 1] != own,
        'items_both': lambda i: True,
    }[name]
    scores = []
    for j in range(1, ITEMS + 1):
        shared = sum(
            sum(i in b and j in b for b in before)
            for i in set(history.tolist())
            if keep(i) and i != j
        )
        count = sum(j in b for b in before)
        scores.append((shared / np.sqrt(max(count, 1)),))
    return scores


@pytest.mark.parametrize(
    'protocol, filter_seen', [('full', True), ('full', False), ('uniform', True)]
)
def test_baselines_in_the_domain(mesh, protocol, filter_seen):
    mesh(1, 1)
    histories = log(seed=3)
    problem = problem_of(
        histories, in_domain=True, protocol=protocol, negatives=9, filter_seen=filter_seen
    )
    ranking = problem.evaluations['test']()
    found, domain = ranking.references(), histories.item_features['domain']
    split = problem.split
    for name in ('popularity', 'markov_in_domain', 'items_own', 'items_other', 'items_both'):
        for n in range(ranking.examples):
            scores = slow_baseline(name, histories, split, ranking, n)
            target, user = ranking.items[n], ranking.targets.users[n]
            seen = histories.items[histories.offsets[user] : ranking.targets.ends[n]].tolist()
            if protocol == 'full':
                hidden = set(seen) if filter_seen else set()
                others = [
                    i
                    for i in range(1, ITEMS + 1)
                    if i != target and i not in hidden and domain[i - 1] == domain[target - 1]
                ]
            else:
                hidden, others = set(), [i for i in ranking.candidates(np.array([n]))[0] if i]
            want = (UNREACHABLE, 0)
            if target not in hidden:
                own = scores[target - 1]
                beat = sum(scores[i - 1] > own for i in others)
                want = beat, sum(scores[i - 1] == own for i in others)
            got = found[name].kept['greater'][n], found[name].kept['ties'][n]
            assert got == want, (name, n)


def test_twins_against_all_pairs():
    """Copies of items under a second id, some for most of their users only."""
    rng = np.random.default_rng(0)
    users, each = 300, 40
    has = rng.random((users, 2 * each)) < rng.choice([0.01, 0.03, 0.1], 2 * each)
    for item in range(0, each, 2):  # a twin that loses some users
        has[:, each + item] = has[:, item] & (rng.random(users) < rng.choice([1, 0.8, 0.6]))
    item = np.nonzero(has)[1]
    histories = Histories(
        items=(item + 1).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(has.sum(1))]),
        user_ids=np.arange(users),
        item_ids=np.arange(2 * each),
    )
    of_items = np.r_[0, np.repeat([1, 2], each)].astype(np.int32)
    want = []
    for one, other in itertools.product(range(each), range(each, 2 * each)):
        common = (has[:, one] & has[:, other]).sum()
        if common >= 3 and common / (has[:, one] | has[:, other]).sum() >= 0.7:
            want.append((one + 1, other + 1))
    assert 5 < len(want) < 30
    np.testing.assert_array_equal(domains.twins(histories, of_items), want)


def test_twin_rows_are_told_apart(mesh):
    """A product under two ids: its second event is a twin row, whichever domain came first."""
    mesh(1, 1)
    rng = np.random.default_rng(0)
    sequences = []
    for user in range(60):
        pair = [1, 26] if user % 2 else [26, 1]  # the twins, among six users of ten
        body = rng.integers(2, 26, 4).tolist()
        sequences.append([*body, *pair] if user % 10 < 6 else [*body, *rng.integers(27, 51, 2)])
    histories = Histories(
        items=np.concatenate(sequences).astype(np.int32),
        offsets=np.arange(0, 361, 6),
        user_ids=np.arange(60),
        item_ids=np.arange(50),
        times=np.tile(np.arange(6), 60),
        item_features={'domain': np.repeat(NAMES, 25)},
    )
    problem = problem_of(histories, in_domain=True)
    assert any('1 pairs across domains' in note and '60.0%' in note for note in problem.notes)
    found = measured(problem, make_table())[1]
    check_members(found)
    rows = found.groups['rows']
    assert {name: group['examples'] for name, group in rows.items()} == {'twin': 36, 'clean': 24}
    alone = problem_of(histories, domain='kitchen').evaluations['test']()
    groups = alone.references()['popularity'].groups
    assert groups['rows']['twin']['examples'] == 18  # known after the other domain is gone


def test_traps(mesh):
    """What cannot be ranked in domains is refused before or when the data are opened."""
    mesh(1, 1)
    histories = log()
    for change, words in (
        ({'domain': 'garden'}, "no domain 'garden': the data have food, kitchen"),
        ({'in_domain': True, 'protocol': 'sasrec-2018'}, 'in validation or test as candidates'),
        ({'in_domain': True, 'targets': 'all', 'split': 'temporal'}, 'one target of a user'),
    ):
        with pytest.raises(UserError, match=words):
            problem_of(histories, **change)
    bare = log()
    bare.item_features.clear()
    with pytest.raises(UserError, match='names no domains of items'):
        problem_of(bare, in_domain=True)
    with pytest.raises(UserError, match="has the one value 'food'"):
        problem_of(log(names=NAMES[:1]))
    rng = np.random.default_rng(0)
    ordered = Histories(
        items=np.sort(rng.permuted(np.tile(np.arange(1, 51), (200, 1)), axis=1)[:, :5]).ravel(),
        offsets=np.arange(0, 1001, 5),
        user_ids=np.arange(200),
        item_ids=np.arange(50),
        item_features={'domain': np.repeat(NAMES, 25)},
    )
    with pytest.raises(UserError, match='sorted by item id'):
        problem_of(ordered)
    ordered.items[:2] = ordered.items[1::-1]  # one user who is not
    problem_of(ordered)


LOG = 'user,item,timestamp,shop\n'


@pytest.mark.parametrize(
    'rows, words',
    [
        ('a,1,1,food\na,2,2,food\n', "has the one value 'food'"),
        ('a,1,1,food\na,1,2,home and kitchen\n', "in the domains 'food' and 'home and kitchen'"),
        ('a,1,1,food\na,2,2,\n', "no value in column 'shop' of event 2"),
        ('a,1,1,food\na,2,2,home and kitchen\nb,3,1,food\n', None),
        ('a,1,1,7\na,2,2,8\nb,3,1,7\n', None),
    ],
)
def test_domains_of_an_own_log(tmp_path, rows, words):
    """Words, phrases and numbers in data.domain_col; ids that two domains share are refused."""
    file = tmp_path / 'log.csv'
    file.write_text(LOG + rows)
    data = Data(log=str(file), domain_col='shop', data_dir=str(tmp_path / 'kept'))
    if words:
        with pytest.raises(UserError, match=words):
            datasets.load(data, say=lambda line: None)
        return
    histories, _ = datasets.load(data, say=lambda line: None)
    want = [row.split(',')[3] for row in rows.splitlines()]
    assert [d.decode() for d in histories.item_features['domain'].tolist()] == want
    plain = Data(log=str(file), data_dir=str(tmp_path / 'kept'))
    assert not datasets.load(plain, say=lambda line: None)[0].item_features


def test_users_who_are_held_out_whole_or_with_their_last_event():
    part = np.repeat([0, 1, 2, 0], [3, 2, 4, 1]).astype(np.int8)
    histories = Histories(
        items=np.arange(1, 11, dtype=np.int32),
        offsets=np.array([0, 3, 5, 9, 10]),
        user_ids=np.arange(4),
        item_ids=np.arange(10),
        features={'part': part},
    )
    split = splits.split(histories, 'given-users')
    assert split.train_ends.tolist() == [3, 3, 5, 10]
    assert (split.valid.users.tolist(), split.valid.ends.tolist()) == ([1], [4])
    assert (split.test.users.tolist(), split.test.ends.tolist()) == ([2], [8])
    part[3], part[5:8] = 0, 0  # users 1 and 2 train with all but their last
    split = splits.split(histories, 'given-users')
    assert split.train_ends.tolist() == [3, 4, 8, 10]
    assert (split.valid.ends.tolist(), split.test.ends.tolist()) == ([4], [8])
    for bad in ([0, 0, 2, 2], [2, 2, 2, 0], [2, 2, 2, 1], [0, 1, 0, 2]):
        part[5:9] = bad
        with pytest.raises(UserError, match='user 2 has events of several parts'):
            splits.split(histories, 'given-users')
    part[5:9], part[9] = 2, 2
    with pytest.raises(UserError, match='user 3 is held out and has a single event'):
        splits.split(histories, 'given-users')


FOOD_KITCHEN = {
    'num': '3\n4\n',
    'train_A': '1\t0,1,2\n',
    'train_B': '1\t3,4\n2\t5,6\n',
    'train_overlap': '1\t0,3\n',
    'valid': '1\t1,4,2\n',
    'test': '1\t2,6\n2\t4,1\n',
}


def llmcdsr(folder, **changes):
    for file, text in {**FOOD_KITCHEN, **changes}.items():
        (folder / f'{file}.txt').write_text(text)
    return two_domains.read_llmcdsr(str(folder), print)[0]


def test_files_of_llmcdsr(tmp_path):
    """Lines of every file are users of their own; what holds out what is named by the file."""
    histories = to_histories(llmcdsr(tmp_path), 'a pair')
    assert np.diff(histories.offsets).tolist() == [3, 2, 2, 2, 3, 2, 2]
    assert [d.decode()[0] for d in histories.item_features['domain'].tolist()] == list('fffkkkk')
    split = splits.split(histories, 'given-users')
    assert (split.valid.users.tolist(), split.test.users.tolist()) == ([4], [5, 6])


def test_llmcdsr_with_last_events_of_users_of_one_domain(tmp_path):
    """A tenth of those with three events validates, another tests; the others are as they were."""
    lines = ''.join(f'{n}\t{n % 3},{(n + 1) % 3}{",2" * (n % 2)}\n' for n in range(80))
    plain = to_histories(llmcdsr(tmp_path, train_A=lines), 'a pair')
    found, again = (to_histories(two_domains.read_alone(str(tmp_path), print)[0], '') for _ in '12')
    assert found.content_hash() == again.content_hash()
    np.testing.assert_array_equal(found.items, plain.items)
    before, after = (splits.split(h, 'given-users') for h in (plain, found))
    lengths, drawn = np.diff(plain.offsets), []
    for name in ('valid', 'test'):
        users = np.setdiff1d(after.targets(name).users, before.targets(name).users)
        assert np.isin(before.targets(name).users, after.targets(name).users).all()
        assert len(users) == 4 and (users < 80).all() and (lengths[users] == 3).all()
        drawn += users.tolist()
    left = before.train_ends - after.train_ends
    assert len(set(drawn)) == 8 and left[drawn].tolist() == [1] * 8 and left.sum() == 8


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'test': '1\t1,4,2\n'}, 'is in valid.txt or twice'),
        ({'train_A': '1\t0,3\n'}, 'train_A.txt line 1 has items of the other domain'),
        ({'num': '2\n5\n'}, 'train_A.txt line 1 has items of the other domain'),
        ({'test': '1\t2,7\n'}, 'has item 7, of which nobody says the domain'),
        ({'train_B': '1 3,4\n'}, 'train_B.txt line 1: not'),
    ],
)
def test_files_of_llmcdsr_that_cannot_be(tmp_path, changes, words):
    """Validation = test, overlapping ids, ids beyond, another layout."""
    with pytest.raises(UserError, match=words):
        llmcdsr(tmp_path, **changes)


def test_files_of_abxi(tmp_path):
    def read(log, named):
        (tmp_path / 'afk_50_preprocessed.txt').write_text(log)
        (tmp_path / 'map_item_50.txt').write_text(named)
        return to_histories(two_domains.read_abxi(str(tmp_path), print)[0], 'a pair')

    histories = read('0 1|5 2|9\n3 2|4\n', '{"A": [1, 0], "B": [2, 1]}')
    assert histories.items.tolist() == [1, 2, 2] and histories.times.tolist() == [5, 9, 4]
    assert histories.item_features['domain'].tolist() == [b'food', b'kitchen']
    for log, named, words in (
        ('0 1|5 2|9\n', '{"A": [1, 0], "B": [2, 1], "C": [1, 1]}', 'item 1 is in both domains'),
        ('0 1|5 7|9\n', '{"A": [1, 0]}', 'has item 7, of which nobody'),
        ('0 1|5\n1 2\n', '{"A": [1, 0]}', 'line 2 is not'),
    ):
        with pytest.raises(UserError, match=words):
            read(log, named)


def test_food_kitchen_as_published(tmp_path):
    source = str(real_data('cdsr-abxi', 'afk'))
    data = Data(dataset='food-kitchen', source=source, data_dir=str(tmp_path))
    histories, _ = datasets.load(data, say=lambda line: None)
    found = domains.find(histories)
    assert np.bincount(found.of_items).tolist() == [1, 11_837, 16_258]
    test = leave_one_out(histories).test
    assert np.bincount(found.of_items[histories.items[test.ends]]).tolist() == [0, 2_419, 4_725]
    assert not found.twin_before[test.ends].any()
    kinds = found.kinds(test.ends, histories.items[test.ends])
    assert domains.HISTORIES[0] == 'both domains' and len(kinds) == 7_144


def test_llmcdsr_as_published(tmp_path):
    source = str(real_data('cdsr-llmcdsr', 'food-kitchen'))
    data = Data(dataset='food-kitchen-llmcdsr', source=source, data_dir=str(tmp_path))
    histories, _ = datasets.load(data, say=lambda line: None)
    found = domains.find(histories)
    assert np.bincount(found.of_items).tolist() == [1, 8_661, 27_637]
    split = splits.split(histories, 'given-users')
    of_test = found.of_items[histories.items[split.test.ends]]
    assert np.bincount(of_test).tolist() == [0, 300, 637] and len(split.valid) == 960
