"""Checkpoints of a run (orbax): `last` to go on from, `best` to evaluate and serve.

A checkpoint is written beside its final name and renamed when it is whole, so a killed run never
leaves half of one behind. With it goes a list of its files with their hashes (`files.seal`): one
that was changed, cut short or copied in part since is found when it is read. Of `last` two are
kept: where the newest is damaged a run goes on from the one before, to the same numbers.
"""

import asyncio
import contextlib
import functools
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxrec import files
from jaxrec.cli import say
from jaxrec.devices import cluster
from jaxrec.errors import UserError
from jaxrec.training import sparse

KEPT = {'last': 2, 'best': 1}  # of each series
_ASIDE = 'damaged'  # folder beside the series
_RECORDS = ('config.json', 'run.json', 'runs.json', 'metrics.jsonl', 'curves.png')
_WRITTEN_AFTER = ('_CHECKPOINT_METADATA', 'commit_success.txt')  # the seal; no numbers are in them


class Checkpoints:
    """The two checkpoint series of a work directory.

    Args:
      workdir: folder of the run; checkpoints go to workdir/checkpoints/{last,best}.
    """

    def __init__(self, workdir: pathlib.Path):
        folder = workdir.absolute() / 'checkpoints'
        self._folder = folder
        self._wrong = {}  # what is wrong with a step's folder, '' = nothing, once it was looked at
        background = ocp.AsyncOptions()
        if jax.process_count() > 1:
            background = ocp.AsyncOptions(barrier_sync_fn=self._barrier)
        with _one_line(folder):
            self._series = {
                name: ocp.CheckpointManager(
                    folder / name,
                    options=ocp.CheckpointManagerOptions(
                        max_to_keep=kept, async_options=background, temporary_path_class=_Sealed
                    ),
                )
                for name, kept in KEPT.items()
            }

    def save_last(self, step: int, state: dict, host: dict) -> None:
        """Saves the whole train state and `host` (JSON-able), in the background."""
        self.wait()  # `host` may speak of a best that must not be lost
        self._save('last', step, state, host)

    def save_best(self, step: int, params: dict, host: dict) -> None:
        """Saves the parameters that scored best so far, in the background."""
        self.wait()  # several processes would mix up the barriers of two saves at once
        self._save('best', step, params, host)

    def last_step(self) -> int | None:
        """Step of the newest one to go on from, None if there is none.

        Raises:
          UserError: all are damaged.
        """
        step = next(self._whole('last'), None)
        if step is None and self._series['last'].latest_step() is not None:
            raise UserError(self.missing('last'))
        return step

    def best_step(self) -> int | None:
        """Step of the best one, None if there is none that is not damaged."""
        return next(self._whole('best'), None)

    def restore_last(self, abstract: dict) -> tuple[dict, dict]:
        """(state, host) of the newest that is not damaged; those that are, are named.

        Args:
          abstract: shapes, dtypes and placement (`mesh.concrete`).

        Raises:
          UserError: there is none, all are damaged, or it belongs to another model.
        """
        return self._restore('last', abstract)

    def restore_best(self, abstract: dict) -> tuple[dict, dict]:
        """(params, host), like `restore_last`."""
        return self._restore('best', abstract)

    def missing(self, name: str) -> str:
        """Why a series has nothing to restore, and what to do about it."""
        folder = self._folder / name
        damaged = [path for path, wrong in self._wrong.items() if wrong and path.parent == folder]
        last = next(self._whole('last'), None) if name == 'best' else None
        other = f'--checkpoint=last takes the one of step {last}'
        if damaged:
            why = f'{damaged[0]} is damaged ({self._wrong[damaged[0]]}): copy it again'
            if name == 'last':
                return f'{why}, or delete {self._folder} to train anew; the best one can be served'
            return f'{why}, or {other}' if last is not None else f'{why}, or train anew'
        if last is None:
            return f'{folder.parent.parent} has no {name} checkpoint: its run has not got that far'
        return f'{folder.parent.parent} has no best checkpoint (not yet, or not any more): {other}'

    def put_aside(self) -> None:
        """Moves what was found damaged to where no save meets it."""
        damaged = [path for path, wrong in self._wrong.items() if wrong]
        if damaged and jax.process_index() == 0:
            with _one_line(self._folder):
                for path in damaged:
                    target = self._folder / _ASIDE / f'{path.parent.name}-{path.name}'
                    target.parent.mkdir(exist_ok=True)
                    shutil.rmtree(target, ignore_errors=True)
                    path.rename(target)
        if damaged:
            say(f'what is damaged was moved to {self._folder / _ASIDE}')
            cluster.meet('damaged checkpoints')
            for manager in self._series.values():
                manager.reload()
            self._wrong = {}

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; UserError if it could not be written."""
        with _one_line(self._folder):
            for manager in self._series.values():
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the disk and ends the background threads."""
        try:
            self.wait()
        finally:
            with _one_line(self._folder):  # a save that has failed is raised here once more
                for manager in self._series.values():
                    manager.close()

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        """Where the processes wait for each other in the background: not after a failed write."""
        error = sys.exception()
        if error is not None:
            try:
                with _one_line(self._folder):
                    raise error
            except Exception as e:
                cluster.end_all(e)
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def _save(self, name, step, tree, host):
        manager = self._series[name]
        if manager.latest_step() == step:  # resumed just before it and came here again
            return
        for later in [other for other in manager.all_steps() if other > step]:
            manager.delete(later)  # a best one that a run, gone back, has not come to again
        tree = sparse.plain(tree)
        # Saving goes on in the background while the next step reuses (donates) these buffers,
        # which on a CPU the writer may still be reading.
        if jax.default_backend() == 'cpu':
            if jax.process_count() > 1:
                tree = jax.tree.map(jnp.copy, tree)
            else:  # which may be on other devices than the current mesh (`parallel_runs`)
                tree = jax.device_put(tree, may_alias=False)
        with _one_line(self._folder):
            manager.save(
                step,
                args=ocp.args.Composite(
                    tree=ocp.args.StandardSave(tree), host=ocp.args.JsonSave(host)
                ),
            )

    def _restore(self, name, abstract):
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore()
        )
        for step in self._whole(name):
            folder = self._folder / name / str(step)
            try:
                restored = self._series[name].restore(step, args=args)
                return restored.tree, restored.host
            except Exception as e:
                if (folder / files.SEAL).exists():  # its files are those that were written
                    _check_fit(folder, abstract)
                    raise
                self._note(folder, (str(e).strip() or type(e).__name__).splitlines()[0])
        raise UserError(self.missing(name))

    def _whole(self, name) -> Iterator[int]:
        """Steps of a series whose files are those that were written, the newest first."""
        for step in sorted(self._series[name].all_steps(), reverse=True):
            folder = self._folder / name / str(step)
            if folder not in self._wrong:
                self._note(folder, cluster.of_first(lambda folder=folder: files.broken(folder)))
            if not self._wrong[folder]:
                yield step

    def _note(self, folder, wrong):
        self._wrong[folder] = wrong
        if wrong and folder.exists():  # else it was replaced while it was read
            say(f'the checkpoint {folder} is damaged: {wrong}')


class _Sealed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The folder that a checkpoint is written to, sealed before it gets its name."""

    async def finalize(self):
        if self.get_final().name.isdigit():  # a step's, not one of the parts inside
            await asyncio.to_thread(files.seal, pathlib.Path(self.get()), _WRITTEN_AFTER)
        await super().finalize()


def check_begun(workdir: pathlib.Path) -> None:
    """Raises UserError if a run that has no `last` checkpoint is not a new one: it has a `best`."""
    folder = workdir.absolute() / 'checkpoints'
    if any(folder.glob('best/[0-9]*')):
        raise UserError(
            f'{folder} has a best checkpoint and no last one to go on from: copy that back, or '
            'delete this folder to train anew'
        )


def standing(workdir: pathlib.Path, name: str) -> tuple | None:
    """What changes when a series, 'last' or 'best', gets another newest checkpoint; None = none.

    Looks at one small file, so that who serves a run can look often.
    """
    found = (workdir / 'checkpoints' / name).glob(f'*/{files.SEAL}')
    steps = {int(path.parent.name): path for path in found if path.parent.name.isdecimal()}
    try:
        return (max(steps), *files.standing(steps[max(steps)])) if steps else None
    except FileNotFoundError:  # replaced at this moment
        return None


def clear_unfinished(workdir: pathlib.Path) -> None:
    """Removes what killed trainings have left half written; only for who has claimed `workdir`."""
    for leftover in (workdir / 'checkpoints').glob('*/*.orbax-checkpoint-tmp*'):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in _RECORDS:
        for leftover in workdir.glob(f'{name}.partial*'):
            leftover.unlink(missing_ok=True)


def by_name(tree: dict) -> dict[str, Any]:
    """{'params.blocks.0.inner.kernel': leaf} of a tree of arrays."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator='.')
    return {name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _check_fit(folder: pathlib.Path, abstract: dict) -> None:
    """Raises UserError if a checkpoint's arrays are not those of `abstract`.

    Asked when it could not be read, not before: each answer costs orbax 100 KiB for good.
    """
    tree = ocp.StandardCheckpointHandler().metadata(folder / 'tree').tree
    there, here = (
        {name: tuple(x.shape) for name, x in by_name(tree).items()} for tree in (tree, abstract)
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise UserError(
                f'checkpoint {folder} does not fit this model ({name} is {there.get(name)} there, '
                f'{here.get(name)} here); it belongs to another config, or to another version of '
                'jaxrec: use another --workdir'
            )


@contextlib.contextmanager
def _one_line(folder):
    """Turns a failed write (full disk, no permission) into one clear line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        cause = e
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        text = str(cause or e)
        known = ('No space left', 'Permission denied', 'Read-only', 'Disk quota', 'Not a directory')
        known += ('File too large', 'Input/output error')
        if cause is None and not any(k in text for k in known):
            raise
        reason = next((k for k in known if k in text), text.splitlines()[0])
        raise UserError(
            f'cannot write checkpoints to {folder}: {reason}; '
            'free some space or choose another --workdir, and run the same command again'
        ) from e
