"""Runs a peer library in its own process, by its own Python, one turn at a time."""

import json
import pathlib
import shutil
import subprocess
import tempfile

import jax
import numpy as np

from jaxrec.cli import say
from jaxrec.data.histories import Histories
from jaxrec.data.ragged import ranges
from jaxrec.data.splits import Split
from jaxrec.errors import UserError
from jaxrec.experiment import Experiment
from jaxrec.problem import Batches

PEERS = {
    'rectools': 'rectools_peer.py',
    'torch-graph': 'graph_peer.py',
    'torch-rechub': 'rechub_peer.py',
}
_SUITES = {'rectools': ('train', 'eval', 'lists')}  # of others, train
BATCH_USERS = 128  # of the peer, which gives every user one row
K = 10  # length of the lists of suite eval

_LOSSES = {
    'softmax': 'softmax',
    'sampled_softmax': 'sampled_softmax',
    'bce': 'BCE',
    'gbce': 'gBCE',
}


class Peer:
    """A peer that is warm and waits: `measure()` runs one turn of it.

    Args:
      name: of PEERS.
      python: interpreter of an environment in which the peer is installed.
      spec: what the peer's script reads, see `train_spec` and `eval_spec`.
      columns: arrays the script finds as npz: users, items (and test_users, test_items).

    Attributes:
      about: versions, parameters, items and threads, as the peer gives them.

    Raises:
      UserError: no such peer or interpreter, or the peer fails.
    """

    def __init__(self, name: str, python: str, spec: dict, columns: dict[str, np.ndarray]):
        self._name = name
        self._folder = tempfile.TemporaryDirectory(prefix='jaxrec-peer-')
        folder = pathlib.Path(self._folder.name)
        np.savez(folder / 'data.npz', **columns)
        spec = {**spec, 'data': str(folder / 'data.npz')}
        (folder / 'spec.json').write_text(json.dumps(spec))
        script = pathlib.Path(__file__).parent / PEERS[name]
        self._errors = open(folder / 'stderr', 'w+')
        say(f'warming up {name} on {len(next(iter(columns.values()))):,} events')
        try:
            self._process = subprocess.Popen(
                [python, str(script), str(folder / 'spec.json')],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                cwd=folder,  # not the caller's: no package there may shadow the peer's
            )
        except OSError as e:
            raise UserError(f'--peer_python={python} cannot be run: {e.strerror}') from e
        self.about = self._answer()

    def measure(self) -> dict:
        """One turn: {'seconds': s, 'count': targets or users}."""
        try:
            self._process.stdin.write('turn\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_answer` says why
        return self._answer()

    def close(self) -> None:
        """Ends the peer's process."""
        self._process.kill()  # Lightning takes SIGTERM for a wish
        self._process.wait()
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._errors.close()
        self._folder.cleanup()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = [text for text in self._errors.read().splitlines() if text.strip()][-1:]
        self.close()
        raise UserError(
            f'the peer {self._name} ended with code {code}: {"".join(last) or "no message"} '
            '(is it installed for --peer_python?)'
        )


def check(name: str | None, python: str | None, suite: str) -> None:
    """UserError unless the peer's flags fit together."""
    if name is None:
        if python is not None:
            raise UserError('--peer_python goes with --peer=' + '|'.join(PEERS))
        return
    if name not in PEERS:
        raise UserError(f'unknown --peer={name}: use one of {", ".join(PEERS)}')
    suites = _SUITES.get(name, ('train',))
    if suite not in suites:
        raise UserError(f'--peer={name} goes with --suite={", ".join(suites)}, not {suite}')
    if not python:
        raise UserError(f'--peer={name} needs --peer_python=PATH, a Python that has it installed')
    if shutil.which(python) is None:
        raise UserError(f'--peer_python={python} cannot be run: no such program')


def train_spec(experiment: Experiment, batches: int) -> dict:
    """Spec of suite train; `batches` > 0 cuts a turn, otherwise one epoch, after so many."""
    if experiment.task.windows != 'last':
        raise UserError(
            "the peer trains on each user's last window: use --config.task.windows=last"
        )
    return {
        'suite': 'train',
        'model': _model(experiment),
        'batches': batches,
        'accelerator': _accelerator(),
    }


def graph_spec(experiment: Experiment, batches: int) -> dict:
    """Spec of the peer of models of pairs; `batches` as in `train_spec`."""
    model = experiment.model
    if experiment.task.windows != 'pairs' or getattr(model, 'loss', '') != 'bpr':
        raise UserError("the peer learns pairs by BPR: task.windows='pairs', model.loss='bpr'")
    views = model.views
    kinds = ('none', 'edge_drop', 'noise', 'one_pass')
    if views.kind not in kinds or (views.kind != 'none' and views.among != 'batch'):
        raise UserError(
            f'the peer has no views of kind {views.kind} among {views.among}: it has '
            f"{', '.join(kinds)} among='batch'"
        )
    return {
        'suite': 'train',
        'device': {'cpu': 'cpu', 'gpu': 'cuda'}[_accelerator()],
        'rows': experiment.train.batch_rows,
        'lr': experiment.optim.learning_rate,
        'batches': batches,
        **{name: getattr(model, name) for name in ('dim', 'layers', 'own_layer', 'decay')},
        'deviation': model.deviation,
        **{name: getattr(views, name) for name in ('kind', 'weight', 'temperature', 'rate')},
        **{name: getattr(views, name) for name in ('noise', 'layer')},
    }


def click_spec(experiment: Experiment, batches: int) -> dict:
    """Spec of the peer of click models; `batches` as in `train_spec`.

    Its MLPs, gates too, have batch normalisation after every layer; ours have it in experts with
    model.expert=bn_swish.
    """
    model = experiment.model
    name = {'jaxrec.models.mmoe': 'mmoe', 'jaxrec.models.ple': 'ple'}.get(type(model).__module__)
    if name is None:
        raise UserError('the peer torch-rechub has MMoE and PLE: set model= to one of them')
    if model.attend or model.cross:
        raise UserError('the peer has fields alone: set model.attend and model.cross to nothing')
    spec = {
        'model': name,
        'device': {'cpu': 'cpu', 'gpu': 'cuda'}[_accelerator()],
        'batch_rows': experiment.train.batch_rows,
        'batches': batches,
        'lr': experiment.optim.learning_rate,
        'dim': model.dim,
        'expert_widths': model.expert_widths,
        'tower_widths': model.tower_widths,
    }
    if name == 'mmoe':
        return {**spec, 'experts': model.experts}
    of_level = len(model.expert_widths) // model.levels
    widths = model.expert_widths[:of_level]
    if model.expert_widths != widths * model.levels:
        raise UserError(
            f'the peer has the same layers in every level: set model.expert_widths to '
            f'{model.levels} times the same, not {model.expert_widths}'
        )
    spec |= {name: getattr(model, name) for name in ('levels', 'own_experts', 'shared_experts')}
    return {**spec, 'expert_widths': widths}


def click_columns(batches: Batches) -> dict[str, np.ndarray]:
    """Every training row: 'labels' float32 [N, T] and 'field.NAME', each with codes of its own.

    A code is int64 from 1, 0 is padding; numbers are float32.
    """
    parts = [batches(step) for step in range(batches.steps_per_epoch)]
    real = np.concatenate([part['weights'] for part in parts]) > 0
    columns = {'labels': np.concatenate([part['labels'] for part in parts])[real]}
    for name in parts[0]['features']:
        column = np.concatenate([part['features'][name] for part in parts])[real]
        if np.issubdtype(column.dtype, np.integer):
            _, place = np.unique(np.append(column, 0), return_inverse=True)
            column = place[:-1].reshape(column.shape)
        columns[f'field.{name}'] = column
    return columns


def eval_spec(experiment: Experiment, suite: str = 'eval') -> dict:
    """Spec of suite eval, or lists."""
    return {
        'suite': suite,
        'model': _model(experiment),
        'k': K,
        'accelerator': _accelerator(),
    }


def train_columns(histories: Histories, split: Split) -> dict[str, np.ndarray]:
    """Every training event: user numbers and items, in order."""
    starts = np.asarray(histories.offsets[:-1])
    lengths = split.train_ends - starts
    return {
        'users': np.repeat(np.arange(histories.num_users), lengths),
        'items': histories.items[ranges(starts, lengths)],
    }


def eval_columns(histories: Histories, split: Split, users: int) -> dict[str, np.ndarray]:
    """Input histories of the test split, and its targets; `users` > 0 serves the first so many."""
    targets = split.test
    starts = histories.offsets[targets.users]
    lengths = targets.ends - starts
    served = slice(users or None)
    return {
        'users': np.repeat(targets.users, lengths),
        'items': histories.items[ranges(starts, lengths)],
        'test_users': targets.users[served],
        'test_items': histories.items[targets.ends[served]],
    }


def lists_columns(histories: Histories, split: Split, users: np.ndarray) -> dict[str, np.ndarray]:
    """The same as `eval_columns`, with `served` users in the order in which they are asked for."""
    return {**eval_columns(histories, split, 0), 'served': users}


def _model(experiment: Experiment) -> dict:
    """The experiment's model in RecTools' words."""
    model = experiment.model
    if getattr(model, 'variant', None) not in ('2018', 'pre_ln', 'ligr'):
        raise UserError(f'the peer has no counterpart of {type(model).__module__}')
    if model.variant == '2018' and model.ffn != 1:
        raise UserError("the peer's block of variant 2018 has model.ffn=1")
    from_data = model.negatives_per == 'data'
    return {
        'variant': model.variant,
        'ffn': model.ffn,
        'n_factors': model.dim,
        'n_blocks': model.blocks,
        'n_heads': model.heads,
        'session_max_len': model.max_len,
        'dropout_rate': model.dropout,
        'loss': _LOSSES[model.loss],
        'n_negatives': experiment.task.unseen_negatives if from_data else model.negatives,
        'gbce_t': model.gbce_t,
        'lr': experiment.optim.learning_rate,
        'batch_size': BATCH_USERS,
    }


def _accelerator() -> str:
    return 'cpu' if jax.default_backend() == 'cpu' else 'gpu'
