"""Checkpoints of a run (orbax): `last` to go on from, `best` to evaluate and serve.

A checkpoint is written beside its final name and renamed when it is whole, so a killed run never
leaves half of one behind.
"""

import contextlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxrec.devices import cluster
from jaxrec.errors import UserError
from jaxrec.training import sparse


class Checkpoints:
    """The two checkpoint series of a work directory.

    Args:
      workdir: folder of the run; checkpoints go to workdir/checkpoints/{last,best}.
    """

    def __init__(self, workdir: pathlib.Path):
        folder = workdir.absolute() / 'checkpoints'
        self._folder = folder
        background = ocp.AsyncOptions()
        if jax.process_count() > 1:
            background = ocp.AsyncOptions(barrier_sync_fn=self._barrier)
        options = ocp.CheckpointManagerOptions(max_to_keep=1, async_options=background)
        with _one_line(folder):
            self._last, self._best = (
                ocp.CheckpointManager(folder / name, options=options) for name in ('last', 'best')
            )

    def save_last(self, step: int, state: dict, host: dict) -> None:
        """Saves the whole train state and `host` (JSON-able), in the background."""
        self.wait()  # `host` may speak of a best that must not be lost
        self._save(self._last, step, state, host)

    def save_best(self, step: int, params: dict, host: dict) -> None:
        """Saves the parameters that scored best so far, in the background."""
        self.wait()  # several processes would mix up the barriers of two saves at once
        self._save(self._best, step, params, host)

    def last_step(self) -> int | None:
        """Step of the newest whole checkpoint, None if there is none."""
        return self._last.latest_step()

    def best_step(self) -> int | None:
        return self._best.latest_step()

    def restore_last(self, abstract: dict) -> tuple[dict, dict]:
        """(state, host); `abstract` gives shapes, dtypes and placement (sharding.concrete)."""
        return self._restore(self._last, abstract)

    def restore_best(self, abstract: dict) -> tuple[dict, dict]:
        """(params, host)."""
        return self._restore(self._best, abstract)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; UserError if it could not be written."""
        with _one_line(self._folder):
            self._last.wait_until_finished()
            self._best.wait_until_finished()

    def close(self) -> None:
        """Waits for the disk and ends the background threads."""
        try:
            self.wait()
        finally:
            self._last.close()
            self._best.close()

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

    def _save(self, manager, step, tree, host):
        newest = manager.latest_step()
        if newest == step:  # resumed just before it and came here again
            return
        if newest is not None and newest > step:
            raise UserError(
                f'{manager.directory} holds step {newest}, later than this run is ({step}): '
                'checkpoints were removed by hand; use another --workdir'
            )
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

    def _restore(self, manager, abstract):
        step = manager.latest_step()
        if step is None:
            raise UserError(f'{manager.directory} holds no checkpoint')
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore()
        )
        try:
            restored = manager.restore(step, args=args)
        except (ValueError, KeyError, TypeError) as e:
            reason = str(e).strip().splitlines()[0]
            raise UserError(
                f'checkpoint {step} in {self._folder} does not fit this model ({reason}); '
                'it belongs to another config: use another --workdir'
            ) from e
        return restored.tree, restored.host


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
        if cause is None and not any(k in text for k in known):
            raise
        reason = next((k for k in known if k in text), text.splitlines()[0])
        raise UserError(
            f'cannot write checkpoints to {folder}: {reason}; '
            'free some space or choose another --workdir, and run the same command again'
        ) from e
