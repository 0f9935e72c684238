r"""Label streams for live rooms, in three generated worlds.

python -m jaxrec.table --table=experiments/tables/moment.py --workdir=runs/tables/moment \
    --seeds=5 --results=results

See experiments/moment_simulator.py. Every model is scored by the visits of the next five minutes:
AUC of clicks, values of ticks (their windows overlap, so that tests over them are too sure);
seconds from the beginning of a highlight until the room's mean probability has risen by half, and
the share of highlights over by then, values of highlights. Seeds are of first parameters and the
order within a tick; the worlds are the columns. Moment&Cross and Sliver measured other data, which
are not public.
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

EXPERIMENT = 'experiments/moment_simulator.py'
METRICS = ('AUC/click', 'AUC/like', 'logloss/click', 'lag', 'missed')

TABLE = Table(
    title='Label streams for live rooms',
    caption='Generated worlds; each model is scored by the visits of the next five minutes.',
    columns=tuple(
        Column(f'world {seed}', METRICS, {'data.dataset': f'live-rooms:seed={seed}'})
        for seed in range(3)
    ),
    rows=(
        Row('fast and slow', f'{EXPERIMENT}:fast_slow'),
        Row('Moment', f'{EXPERIMENT}:moment'),
        Row('Sliver', f'{EXPERIMENT}:sliver'),
        Row('fake negatives weighted', f'{EXPERIMENT}:fake_negative'),
        Row('oracle', f'{EXPERIMENT}:oracle'),
    ),
    baseline='fast and slow',
    shown=('Moment',),
    orderings=(
        Ordering(
            'Moment',
            'fast and slow',
            'online click +1.63 % (Kuaishou), +0.64 % (Lite)',
            'Moment&Cross, arXiv 2408.05709',
            ('AUC/click',),
        ),
        Ordering(
            'Sliver',
            'fast and slow',
            'RelaImpr of click 4.55 to 5.57 % over labels of five minutes',
            'Sliver, arXiv 2402.14399',
            ('AUC/click',),
        ),
    ),
    protocol='live',
)
