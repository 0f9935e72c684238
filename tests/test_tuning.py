"""What is chosen by the kind of device: by the mesh, in one place, and recorded."""

import jax
import jax.numpy as jnp
import pytest
import runs
import topologies

from jaxrec import files
from jaxrec.devices import tuning as tuning_lib
from jaxrec.experiment import check
from jaxrec.nn.attention import attention, causal_mask
from jaxrec.training.loop import fit
from jaxrec.training.state import turns_of


@pytest.fixture(params=['cpu', 'gpu', 'tpu'])
def kind(request, monkeypatch):
    """Of the devices, as far as tunings know."""
    monkeypatch.setattr(tuning_lib, 'platform', lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ('asked', 'rows', 'tokens', 'on_cpu', 'elsewhere'),
    [
        (0, 64, 200, 4, 1),  # the ML-1M recipes
        (0, 70, 200, 5, 1),
        (0, 36, 50, 1, 1),
        (0, 68, 200, 4, 1),  # 17 rows, a little too many, rather than 4
        (0, 69, 200, 3, 1),  # 23 rather than 3
        (0, 7, 1000, 1, 1),  # no divisor but all, three times too few
        (0, 97, 200, 1, 1),
        (0, 3, 9000, 3, 1),  # not even a row fits
        (0, 512, 0, 1, 1),  # rows that are no histories
        (1, 64, 200, 1, 1),
        (3, 66, 200, 3, 3),  # who asks for turns gets them
    ],
)
def test_turns(kind, asked, rows, tokens, on_cpu, elsewhere):
    expected = on_cpu if kind == 'cpu' else elsewhere
    assert tuning_lib.turns(asked, rows, tokens) == expected


def test_a_step_that_cannot_be_divided_is_whole(mesh, tmp_path):
    mesh(1, 1)
    changes = {'train.microbatches': 0, 'train.batch_rows': 600, 'optim.ema': 0.0}
    assert turns_of(runs.small(tmp_path, **changes)) == 2  # rows of 10
    sparse = runs.small(tmp_path, **changes, **{'optim.table': 'sparse_adam', 'model.loss': 'bce'})
    check(sparse)
    assert turns_of(sparse) == 1


def test_causal_queries_go_in_groups_on_a_cpu_alone(kind):
    x = jax.ShapeDtypeStruct((2, 200, 1, 8), jnp.float32)

    def call(x):
        mask = causal_mask(jnp.ones((2, 200), jnp.int32))
        return attention(x, x, x, mask, 0.0, None, causal=True)

    products = str(jax.make_jaxpr(call)(x)).count('dot_general')
    assert products == (2 * 4 if kind == 'cpu' else 2)


@pytest.mark.accelerators
@pytest.mark.parametrize(('kind', 'make'), [('tpu', lambda: topologies.tpu('v5e:2x2'))])
def test_the_mesh_says_which(kind, make):
    with jax.set_mesh(topologies.mesh_of(make(), 4)):
        assert tuning_lib.tuning() == tuning_lib.TUNINGS[kind]
        assert jax.eval_shape(lambda: jnp.zeros(tuning_lib.tuning().queries + 1)).shape == (1,)


def test_a_run_records_what_was_chosen(tmp_path):
    changes = {'train.microbatches': 0, 'train.steps': 1, 'model.blocks': 0}
    fit(runs.small(tmp_path, **changes), tmp_path / 'run')
    recorded = files.read_json(tmp_path / 'run' / 'run.json')['sessions'][0]['tuning']
    assert recorded['microbatches'] == 1 and recorded['queries'] == tuning_lib.tuning().queries
    assert files.read_json(tmp_path / 'run' / 'config.json')['train']['microbatches'] == 0
