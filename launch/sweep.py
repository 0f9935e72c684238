r"""One command per row of an experiment's sweep(): printed, run in turn, or put into one table.

    python launch/sweep.py --experiment=experiments/kuaiformer_ml1m.py --workdir=runs/ml1m
    python launch/sweep.py ... --run [--only='k/*,sasrec'] [--seeds=0,1,2] [-- FLAGS]
    python launch/sweep.py ... --submit='sbatch --export=ALL,EVALUATE=1 launch/slurm.sbatch'
    python launch/sweep.py ... --table [--metrics=HR@50,HR@500]

Each row is an independent run in WORKDIR/ROW/seedN: print the commands and give them to as many
machines as you like, --run them here, one after the other, or --submit them: the words given are
put before the flags of each training, and a scheduler trains and evaluates. A row that was finished
is not run again, one that was cut short goes on. FLAGS are added to every training command
(--config.*). The table has the mean over seeds and the standard deviation of a single seed.
"""

import fnmatch
import json
import pathlib
import runpy
import shlex
import subprocess
import sys

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string('experiment', None, 'Experiment file that has a sweep().', required=True)
flags.DEFINE_string('workdir', None, 'Folder for the runs.', required=True)
flags.DEFINE_list('only', [], 'Rows to take, with * for any text; all if empty.')
flags.DEFINE_list('seeds', ['0'], 'Seeds of training.')
flags.DEFINE_bool('run', False, 'Run the commands instead of printing them.')
flags.DEFINE_string('submit', None, 'Command to put before the flags of each row, to run it.')
flags.DEFINE_bool('table', False, 'Print the results that are there as a Markdown table.')
flags.DEFINE_list('metrics', ['HR@50'], 'Columns of the table.')


def main(argv: list[str]) -> None:
    """The command."""
    if not pathlib.Path(FLAGS.experiment).is_file():
        sys.exit(f'error: no such experiment file: {FLAGS.experiment} (--experiment)')
    sweep = runpy.run_path(FLAGS.experiment).get('sweep')
    if sweep is None:
        sys.exit(f'error: {FLAGS.experiment} has no sweep()')
    rows = {
        name: row
        for name, row in sweep().items()
        if not FLAGS.only or any(fnmatch.fnmatch(name, pattern) for pattern in FLAGS.only)
    }
    if not rows:
        sys.exit(f'error: --only={",".join(FLAGS.only)} takes no row of {", ".join(sweep())}')
    if FLAGS.table:
        print(table(rows))
        return
    for name, row in rows.items():
        for seed in FLAGS.seeds:
            todo = commands(name, row, seed, argv[1:])
            if FLAGS.submit:
                train = todo[0]
                todo = [shlex.split(FLAGS.submit) + train[train.index('jaxrec.train') + 1 :]]
            for command in todo:
                if not (FLAGS.run or FLAGS.submit):
                    print(shlex.join(command))
                elif not result(name, seed).exists():
                    if subprocess.run(command).returncode:
                        sys.exit(f'error: failed: {shlex.join(command)}')


def commands(name: str, row: tuple[str, dict], seed: str, more: list[str]) -> list[list[str]]:
    """Training and evaluation of one row with one seed."""
    arg, overrides = row
    config = FLAGS.experiment + (f':{arg}' if arg else '')
    settings = {**overrides, 'train.seed': seed}
    python = [sys.executable, '-m']
    place = f'--workdir={folder(name, seed)}'
    train = [*python, 'jaxrec.train', f'--config={config}', place]
    train += [f'--config.{field}={value}' for field, value in settings.items()]
    return [[*train, *more], [*python, 'jaxrec.evaluate', place]]


def folder(name: str, seed: str) -> pathlib.Path:
    """Of one run."""
    return pathlib.Path(FLAGS.workdir) / name.replace('/', '_') / f'seed{seed}'


def result(name: str, seed: str) -> pathlib.Path:
    """File with the test metrics of one run."""
    return folder(name, seed) / 'evaluation_test_full.json'


def table(rows: dict) -> str:
    """Markdown, a line per row of the sweep that has a result."""
    lines = [['', 'seeds', *FLAGS.metrics], ['---', '--:', *['--:'] * len(FLAGS.metrics)]]
    hashes = set()
    for name in rows:
        found = [p for seed in FLAGS.seeds if (p := result(name, seed)).exists()]
        if not found:
            continue
        results = [json.loads(path.read_text()) for path in found]
        hashes |= {r['data_hash'] for r in results}
        cells = []
        for metric in FLAGS.metrics:
            if missing := [r for r in results if metric not in r['metrics']]:
                known = ', '.join(missing[0]['metrics'])
                sys.exit(f'error: --metrics={metric}: {name} has only {known}')
            values = np.array([r['metrics'][metric] for r in results])
            spread = f' ± {values.std(ddof=1):.4f}' if len(values) > 1 else ''
            cells.append(f'{values.mean():.4f}{spread}')
        lines.append([name, str(len(found)), *cells])
    if len(hashes) > 1:
        sys.exit(f'error: the runs are of {len(hashes)} different data sets')
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


if __name__ == '__main__':
    app.run(main)
