r"""KuaiFormer's comparisons and ablations as orderings, on MovieLens 1M.

python -m jaxrec.table --table=experiments/tables/kuaiformer_ablation.py \
    --workdir=runs/tables/kuaiformer_ablation --seeds=3 --results=results

The paper's numbers are of Kuaishou's own traffic, so none of them can stand in a column here; its
claims about what is better than what can be tested. Rows are those of the experiment's sweep() with
3 epochs. Prepare the data set first (`python -m jaxrec.prepare --dataset=ml-1m`).
"""

import pathlib
import runpy

from jaxrec.paper.spec import Column, Ordering, Row, Table

_EXPERIMENT = 'experiments/kuaiformer_ml1m.py'
_sweep = runpy.run_path(str(pathlib.Path(__file__).parents[2] / _EXPERIMENT))['sweep']()
_NAMES = {
    'KuaiFormer': 'kuaiformer',  # 256 events, the oldest 208 compressed
    'SASRec': 'sasrec',
    'ComiRec-SA': 'comirec',
    'KuaiFormer window 8': 'length/8',
    'KuaiFormer window 64': 'length/64',
    'KuaiFormer window 256': 'length/256',
    'k = 1': 'k/1',
    'k = 2': 'k/2',
    'k = 6': 'k/6',
    '1 layer': 'layers/1',
    '4 layers': 'layers/4',
    'no logQ': 'logq/none',
}
_SHORT = {'train.epochs': 3, 'train.eval_every': 3.0}
PAPER = 'Liu et al. (KuaiFormer, arXiv 2411.10057) [paper]'


def _row(name: str, swept: str) -> Row:
    arg, overrides = _sweep[swept]
    experiment = _EXPERIMENT + (f':{arg}' if arg else '')
    return Row(name, experiment, {**overrides, **_SHORT})


def _claim(better: str, worse: str, claim: str, *metrics: str) -> Ordering:
    return Ordering(better, worse, claim, PAPER, metrics)


TABLE = Table(
    title='KuaiFormer: which is better than which',
    caption='A small run, the same for all: dim 64, 2 layers, 4 query tokens, 3 epochs of at most '
    '64 targets per user; window 64 in the ablations of layers, query tokens and logQ.',
    columns=(Column('ML-1M', ('HR@50', 'HR@500')),),
    rows=tuple(_row(name, swept) for name, swept in _NAMES.items()),
    baseline='KuaiFormer',
    orderings=(
        _claim('KuaiFormer', 'SASRec', 'HR@50 4.21 % and 1.17 %, HR@500 15.61 % and 5.37 %'),
        _claim('KuaiFormer', 'ComiRec-SA', 'HR@50 4.21 % and .95 %, HR@500 15.61 % and 7.02 %'),
        _claim('SASRec', 'ComiRec-SA', 'HR@50 1.17 % and .95 %', 'HR@50'),
        _claim('ComiRec-SA', 'SASRec', 'HR@500 7.02 % and 5.37 %', 'HR@500'),
        _claim('KuaiFormer window 64', 'KuaiFormer window 8', 'accuracy .417 and .325'),
        _claim('KuaiFormer window 256', 'KuaiFormer window 64', 'accuracy .441 and .417'),
        _claim('KuaiFormer', 'KuaiFormer window 256', 'compressed .445, uncompressed .441'),
        _claim('k = 2', 'k = 1', 'accuracy + .006'),
        _claim('k = 6', 'k = 2', '6 query tokens chosen'),
        _claim('4 layers', '1 layer', 'accuracy .433 and .391'),
        _claim('KuaiFormer window 64', 'no logQ', 'logQ is used; no number is given'),
    ),
)
