"""Plans of meshes that are not here, against sizes and operations counted by hand."""

import pytest
from runs import inside, process, small

from jaxrec import config
from jaxrec.errors import UserError
from jaxrec.training import plan, plan_text

LARGE = (  # 10 million items, dim 128, 2 blocks, window 100
    '--config.model.loss=sampled_softmax',
    '--config.model.negatives_per=batch',
    '--config.optim.table=rowwise_adagrad',
    '--config.optim.ema=0',
)


def planned(*flags):
    done = process('train', '--dry_run', *flags, '--json')
    return done.result, done.stderr


def layers_of(dim, blocks, max_len):
    """Parameters of SASRec '2018' without the table: positions, q k v and two layers, norms."""
    block = 5 * (dim * dim + dim) + 2 * 2 * dim
    return max_len * dim + blocks * block + 2 * dim


def test_beauty_on_512_devices():
    beauty = ('--config=experiments/sasrec_beauty.py', '--mesh=64,8', '--items=12101')
    found, said = planned(*beauty)
    dim, shard, rest = 256, 12160 // 8, layers_of(256, 1, 50)
    assert found['devices'] == 512 and found['batch_rows'] == 64
    assert '--config.train.batch_rows=64' in said  # the experiment has 24
    assert found['parameters'] == 12160 * dim + rest == 3_456_256
    memory, parameters = found['memory'], 4 * (shard * dim + rest)
    assert memory['parameters'] == memory['averaged parameters'] == parameters
    assert memory['optimiser state'] == 2 * parameters + 2 * 4  # Adam's and the schedule's count
    assert memory['batch'] == 5 * 50 * 4
    assert memory['temporaries'] > 2 * 50 * shard  # logits of a chunk, in some form
    assert memory['total'] == sum(v for name, v in memory.items() if name != 'total')
    tokens = 50  # of a device; forward and backward are 3 products each
    by_hand = 10 * tokens * dim**2 + 2 * tokens * dim * shard + 4 * tokens * 50 * dim
    assert found['flops'] == 3 * by_hand and found['flops_of_all'] == 512 * 3 * by_hand
    # gradients of the layers, and of the shard from each of its three uses; three times [1, 50, D]
    sums = 4 * (rest + 3 * shard * dim + 3 * tokens * dim)
    assert set(found['collectives']) == {'all-reduce'}
    assert found['collectives']['all-reduce']['bytes'] == pytest.approx(sums, rel=0.002)


def test_ten_million_items_on_64_devices():
    found, _ = planned('--config=experiments/own_log.py', '--mesh=8,8', '--items=10000000', *LARGE)
    rows, dim, rest = 10_000_064, 128, layers_of(128, 2, 100)
    assert found['parameters'] == rows * dim + rest == 1_280_187_392
    memory = found['memory']
    assert memory['parameters'] == 4 * (rows // 8 * dim + rest)
    assert memory['optimiser state'] == 4 * (rows // 8 + 2 * rest + 2)  # a number per row
    assert memory['temporaries'] < 40e6  # touched rows, nothing of the table's 640 MB
    moved = sum(kind['bytes'] for kind in found['collectives'].values())
    touched = 2 * 32 * 100 + 256 + 1
    assert 2 * touched * dim * 4 < moved < 6 * touched * dim * 4


def test_of_a_data_set_and_of_microbatches(tmp_path):
    """Eight devices are here: the same in this process, with the epochs of real data."""
    changes = {'model.blocks': 0, 'optim.ema': 0.0, 'train.batch_rows': 6, 'train.microbatches': 2}
    found = plan.plan(small(tmp_path, **changes), config.Mesh(4, 2))
    assert found['batch_rows'] == 8  # 2 turns on 4 devices
    assert found['parameters'] == 64 * 8 + 10 * 8 + 2 * 8
    assert found['memory']['parameters'] == 4 * (32 * 8 + 10 * 8 + 2 * 8)
    assert found['memory']['batch'] == 2 * 10 * 5 * 4
    assert found['flops'] == 3 * 2 * 20 * 8 * 32  # the softmax, both turns
    assert found['steps_per_epoch'] > 10
    assert 'note' in plan_text.text(found, 6) and 'note' not in plan_text.text(found, 8)


def test_mistakes_end_in_one_line():
    for flags, phrase in (
        (('--config=experiments/quickstart.py',), '--mesh=64,8'),
        (
            ('--config=experiments/kuaiformer_ml1m.py', '--mesh=4,2', '--items=5'),
            '--items has no features',
        ),
    ):
        assert phrase in inside('train', '--dry_run', *flags).error
    for flag in ('--mesh=4,2', '--items=5'):
        error = inside('train', '--config=experiments/quickstart.py', '--workdir=x', flag).error
        assert 'go with --dry_run' in error


def test_mesh_as_text():
    assert plan.parse_mesh('64,8') == config.Mesh(64, 8)
    for bad in ('', '8', 'a,b', '8,0', '2,2,2', '-1,2'):
        with pytest.raises(UserError, match='--mesh=DATA,MODEL'):
            plan.parse_mesh(bad)
