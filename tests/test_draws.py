"""Random draws of a step are each device's own: no array of bits is longer than its part."""

import math
import re

import jax
import numpy as np
import pytest
import topologies
from flax import nnx

from jaxrec.models import kuaiformer, sasrec
from jaxrec.objectives.contrast import Contrast
from jaxrec.training.state import split_model

ITEMS, L = 5000, 7
OWN = 3  # rows of a device
QUICK = {
    'cpu': {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True},
    'tpu': {},
}
SAMPLED = {'loss': 'sampled_softmax', 'negatives': 5, 'max_len': L, 'dim': 8, 'blocks': 1}
MODELS = {
    'dropout': sasrec.Config(**SAMPLED, table_dropout=0.1),
    'views': sasrec.Config(**SAMPLED, contrast=(Contrast(second='cutoff'),)),
    'cuts': kuaiformer.Config(max_len=L, newest=3, compress=(2, 2), dim=8, blocks=1),
}


def compiled_loss(model, mesh):
    """The text of the loss of OWN rows a device."""
    with jax.set_mesh(mesh):
        rows = OWN * mesh.shape['data']
        split = jax.NamedSharding(mesh, jax.P('data'))

        def placed(*shape, dtype=np.int32):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

        width = 2 if isinstance(model, kuaiformer.Config) else L
        batch = {name: placed(rows, L) for name in ('items', 'segments', 'positions')}
        batch |= {'targets': placed(rows, width), 'weights': placed(rows, width, dtype=np.float32)}
        batch |= {'log_share': placed(rows, width, dtype=np.float32)}
        batch |= {name: placed(rows) for name in ('users', 'user_targets')}
        graphdef, params = split_model(model, {'item': ITEMS})

        def loss(params, batch):
            model, key = nnx.merge(graphdef, params), jax.random.key(1)
            return model.loss(model.sample(batch, key), {}, {}, key)[0]

        lowered = jax.jit(loss).lower(params, batch)
        return lowered.compile(compiler_options=QUICK[mesh.devices.flat[0].platform]).as_text()


def drawn(text):
    """Shapes of what hashes and generators mix, of more than a key."""
    found = re.findall(r'= u32\[([0-9,]+)\]\S* xor\(', text)
    shapes = {tuple(map(int, shape.split(','))) for shape in found}
    return {shape for shape in shapes if math.prod(shape) > 64}


def check(model, mesh):
    shapes = drawn(compiled_loss(model, mesh))
    largest = ITEMS / mesh.shape['model'] + 64  # a shard of the table, for its dropout
    assert any(shape[0] == OWN for shape in shapes)
    for shape in shapes:
        assert OWN * mesh.shape['data'] not in shape and max(shape) <= largest, shape


@pytest.mark.parametrize(('name', 'shape'), [('dropout', (4, 2)), ('views', (8, 1))])
def test_a_device_draws_for_its_own_part(name, shape):
    check(MODELS[name], topologies.mesh_of(jax.devices(), *shape))


@pytest.mark.accelerators
@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize(
    ('topology', 'shape'), [('v5e:4x4', (16, 1)), ('v5e:4x4', (8, 2)), ('v5e:16x16', (256, 1))]
)
def test_on_a_pod_too(name, topology, shape):
    check(MODELS[name], topologies.mesh_of(topologies.tpu(topology), *shape))
