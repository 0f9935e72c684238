r"""KuaiFormer's comparisons and ablations as orderings, on MovieLens 1M.

python -m jaxrec.table --table=experiments/tables/kuaiformer_ablation.py \
    --workdir=runs/tables/kuaiformer_ablation --seeds=3 --results=results

The paper's numbers are of Kuaishou's own traffic, so none of them can stand in a column here; its
claims about what is better than what can be tested. Rows run for 3 epochs.
Prepare the data set first (`python -m jaxrec.prepare --dataset=ml-1m`).
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

_EXPERIMENT = 'experiments/kuaiformer_ml1m.py'


def window(length: int) -> dict:
    """A window of `length` events, none compressed, with as many targets per user and batch.

    Short windows hold fewer cuts, so that these have a history.
    """
    cuts = min(8, max(1, length // 8))
    return {
        'model.max_len': length,
        'model.compress': (),
        'model.newest': length,
        'task.cuts': cuts,
        'task.windows_per_user': 64 // cuts,
        'train.batch_rows': 512 // cuts,
    }


CHEAP = window(64)  # of the ablations of layers, query tokens and logQ
ROWS = {  # name -> argument of the experiment, fields that differ
    'KuaiFormer': ('', {}),  # 256 events, the oldest 208 compressed
    'SASRec': ('sasrec', {}),
    'SASRec window 256': ('sasrec', {'model.max_len': 256}),
    'SASRec no features': ('sasrec', {'model.features': ()}),
    'ComiRec-SA': ('comirec', {}),
    **{f'KuaiFormer window {n}': ('', window(n)) for n in (8, 16, 32, 64, 128, 256)},
    **{f'k = {k}': ('', {**CHEAP, 'model.interests': k}) for k in range(1, 8)},
    'k = 4 routed by the target': ('', {**CHEAP, 'model.in_batch.routing': 'target'}),
    'k = 4 softly the best': ('', {**CHEAP, 'model.in_batch.softness': 1.0}),
    'k = 4 held apart': ('', {**CHEAP, 'model.in_batch.apart': 0.1}),
    '1 layer': ('', {**CHEAP, 'model.blocks': 1}),
    **{f'{n} layers': ('', {**CHEAP, 'model.blocks': n}) for n in range(2, 6)},
    'no logQ': ('', {**CHEAP, 'model.in_batch.logq': 'none'}),
    'streaming logQ': ('', {**CHEAP, 'model.in_batch.logq': 'streaming'}),
    'refined logQ': ('', {**CHEAP, 'model.in_batch.refined': True}),
    'smoothing .1': ('', {**CHEAP, 'model.in_batch.smoothing': 0.1}),
    '512 uniform negatives': ('', {**CHEAP, 'model.in_batch.uniform': 512}),
    'no features': ('', {**CHEAP, 'model.features': ()}),
}
_SHORT = {'train.epochs': 3, 'train.eval_every': 3.0}
PAPER = 'Liu et al. (KuaiFormer, arXiv 2411.10057) [paper]'


def _claim(better: str, worse: str, claim: str, *metrics: str) -> Ordering:
    return Ordering(better, worse, claim, PAPER, metrics)


TABLE = Table(
    title='KuaiFormer: which is better than which',
    caption='A small run, the same for all: dim 64, 2 layers, 4 query tokens, 3 epochs of at most '
    '64 targets per user; window 64 in the ablations of layers, query tokens and logQ.',
    columns=(Column('ML-1M', ('HR@50', 'HR@500')),),
    rows=tuple(
        Row(name, _EXPERIMENT + (arg and f':{arg}'), {**changed, **_SHORT})
        for name, (arg, changed) in ROWS.items()
    ),
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
