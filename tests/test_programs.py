"""How many programs a run compiles: at most two for training, three for evaluation, and once."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import topologies
from jax.experimental.compilation_cache import compilation_cache

from jaxrec.data.histories import Histories
from jaxrec.data.history_batches import few_widths, history_batches
from jaxrec.data.splits import Targets
from jaxrec.devices import programs
from jaxrec.experiment import applied
from jaxrec.models import kuaiformer, sasrec
from jaxrec.objectives.contrast import Contrast
from jaxrec.tasks import next_item
from jaxrec.training import plan
from jaxrec.training.loop import fit
from jaxrec.training.state import Program

WINDOW = 20
DUOREC = Contrast(first='dropout', second='same_target', same_target_negatives=False)
MODELS = {
    'sasrec': sasrec.Config(max_len=WINDOW),
    'cl4srec': sasrec.Config(max_len=WINDOW, contrast=(Contrast(),)),
    'duorec': sasrec.Config(max_len=WINDOW, contrast=(DUOREC,)),
    'duorec on cuts': sasrec.Config(max_len=WINDOW, loss='in_batch', contrast=(DUOREC,)),
    'kuaiformer': kuaiformer.Config(max_len=WINDOW, newest=12, compress=(4, 4)),
}


def skewed(users=3000, items=200):
    """Mostly short histories, a few of hundreds of events: every width and many sizes come."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(1.8, 0.9, users), 3, 300).astype(int)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    drawn = (rng.zipf(1.3, offsets[-1]) % items + 1).astype(np.int32)
    return Histories(drawn, offsets, np.arange(users), np.arange(1, items + 1))


def shapes_of(batch):
    return str(jax.tree.map(np.shape, batch))


@pytest.fixture(scope='module')
def histories():
    return skewed()


@pytest.mark.parametrize('name', MODELS)
def test_few_shapes_and_all_of_them_known(histories, name, tmp_path, mesh):
    """Of five epochs, and of both evaluations together."""
    mesh(1, 1)
    cuts = MODELS[name].inputs().cuts
    experiment = runs.small(tmp_path, **({'task.windows': 'cuts', 'task.cuts': 2} if cuts else {}))
    experiment = applied(experiment, {'train.batch_rows': 32})
    experiment.model = MODELS[name]
    problem = next_item.NextItem(experiment, histories, {'data_hash': '', 'path': ''})
    batches = problem.batches()
    came = {shapes_of(batches(step)) for step in range(5 * batches.steps_per_epoch)}
    known = {shapes_of(batch) for batch in batches.shapes()}
    assert came <= known and len(known) <= 2
    evaluations = [problem.ranking(which) for which in ('valid', 'test')]
    assert len({shapes_of(batch) for one in evaluations for _, batch in one.batches()}) <= 3


def test_the_widths_are_the_best_three(histories):
    """Among all triples, by trying each."""
    rng = np.random.default_rng(1)
    lengths = np.minimum(rng.geometric(0.2, 400), 30)
    best = few_widths(lengths, 10)
    grid = [w for w in range(1, 33) if w <= 8 or w % (1 << (w.bit_length() - 4)) == 0]

    def cost(widths):
        chosen = np.array(widths)[np.searchsorted(widths, lengths)]
        return (np.minimum(chosen, 10) + chosen / 16).sum()

    last = next(w for w in grid if w >= lengths.max())
    tried = [cost((a, b, last)) for a in grid for b in grid if a < b < last]
    assert len(best) == 3 and best[-1] == last and cost(best) == pytest.approx(min(tried))


def test_a_history_beyond_the_widths_comes_too():
    histories = Histories(
        np.ones(50, np.int32), np.array([0, 3, 50]), np.arange(2), np.arange(1, 3)
    )
    targets = Targets(np.arange(2), np.array([2, 49]))
    widths = few_widths(np.array([2, 3]), 60)
    options = {'max_len': 60, 'batch_users': 2, 'widths': widths}
    batches = [batch['items'] for _, batch in history_batches(histories, targets, **options)]
    assert sorted((x > 0).sum() for x in batches) == [2, 46]


@pytest.mark.slow
def test_a_run_compiles_two_steps_and_three_predictions(tmp_path):
    """Steps of both sizes are taken, by count of what XLA was given."""
    changes = {'task.batch_users': 32, 'train.epochs': 2, 'optim.ema': 0.0}
    experiment = runs.small(tmp_path, **changes)
    experiment.model = sasrec.Config(dim=4, blocks=0, max_len=10, contrast=(DUOREC,))
    with runs.compiled() as names:
        fit(experiment, tmp_path / 'run')
    assert 1 <= names['step'] <= 2 and 1 <= names['predict'] <= 3 and not names['computed']


def test_the_dry_run_plans_every_shape(histories, tmp_path):
    experiment = runs.small(tmp_path, **{'train.batch_rows': 32})
    experiment.data.dataset = 'synthetic:users=2000,items=60,length=8,seed=1'
    experiment.model = sasrec.Config(dim=4, blocks=0, max_len=10, contrast=(DUOREC,))
    found = plan.plan(experiment, experiment.mesh)
    assert found['batch_shapes'] == len(experiment.task.open(experiment).batches().shapes()) == 2


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A user's cache folder, where programs that take no time to compile are kept too."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
    monkeypatch.setattr(warnings, 'filters', list(warnings.filters))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', None)
    compilation_cache.reset_cache()
    yield tmp_path / 'cache'
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()


def computed():
    """What a program gives that no call before has compiled, as far as memory goes."""
    jax.clear_caches()
    return float(jax.jit(lambda x: jnp.sin(x) + 41)(0.0))


def test_programs_are_kept_and_damaged_ones_replaced(own_cache, capsys):
    programs.keep()
    assert computed() == 41 and capsys.readouterr().out == ''
    (kept,) = own_cache.rglob('jit__lambda*-cache')
    size = kept.stat().st_size
    for content in (b'', b'junk', kept.read_bytes()[: size // 2]):
        for path in own_cache.rglob('*-cache'):
            path.write_bytes(content)
        assert computed() == 41 and kept.stat().st_size > size - 100
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and str(kept.parent) in told[0]


@pytest.mark.parametrize('how', ['file', 'off', 'elsewhere'])
def test_programs_that_cannot_or_shall_not_be_kept(own_cache, capsys, how):
    if how == 'file':  # as a folder that cannot be written
        own_cache.write_text('')
    if how == 'elsewhere':
        jax.config.update('jax_compilation_cache_dir', str(own_cache.parent / 'mine'))
    jax.config.update('jax_enable_compilation_cache', how != 'off')
    programs.keep()
    jax.config.update('jax_enable_compilation_cache', True)
    assert computed() == 41 and not own_cache.is_dir()
    assert len(capsys.readouterr().out.splitlines()) == (how == 'file')


@pytest.mark.accelerators
@pytest.mark.parametrize('table', ['dense', 'sparse_adam'])
def test_on_a_gpu_no_sum_of_a_step_is_atomic(table, tmp_path):
    """Every scatter of floats writes rows once each: what falls together was summed before."""
    changes = {'optim.table': table, 'optim.ema': 0.0, 'model.loss': 'sampled_softmax'}
    experiment = runs.small(tmp_path, **changes)
    with jax.set_mesh(topologies.mesh_of(topologies.gpus(1), 1)):
        problem = experiment.task.generated(experiment, 5000)
        program = Program(experiment, problem, 10)
        split = jax.NamedSharding(jax.sharding.get_mesh(), jax.P('data'))
        (batch,) = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
            problem.batches().shapes(),
        )
        options = {'xla_gpu_enable_triton_gemm': False}  # its search needs the card
        text = program.lowered(batch).compile(compiler_options=options).as_text()
    scatters = [one for one in text.splitlines() if re.search(r'= f32.* scatter\(', one)]
    assert scatters
    for one in scatters:
        assert 'unique_indices=true' in one


def test_only_gpus_are_told_to_be_deterministic(monkeypatch):
    assert programs.deterministic() is None
    monkeypatch.setattr(programs, 'platform_of_mesh', lambda: 'gpu')
    assert programs.deterministic() == {'xla_gpu_deterministic_ops': True}
