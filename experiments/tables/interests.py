r"""How many interests KuaiFormer needs where users are known to have 1, 2 or 4 tastes.

python -m jaxrec.table --table=experiments/tables/interests.py --workdir=runs/tables/interests \
    --seeds=5 --results=results
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

EXPERIMENT = 'experiments/kuaiformer_interests.py'
CLAIM = 'as many vectors as tastes, where there are several'


def row(k: int, dim: int) -> Row:
    """Of 1 and 4 vectors for every kind of user; the ladder between for those of 4 tastes."""
    columns = ('1 tastes', '2 tastes', '4 tastes') if k in (1, 4) else ('4 tastes',)
    changed = {'model.interests': k, 'model.dim': dim}
    return Row(f'k = {k} dim {dim}', EXPERIMENT, changed, columns=columns)


def column(tastes: int) -> Column:
    """Users with so many tastes; 120 items each, whatever their number."""
    dataset = f'synthetic:interests={tastes},tastes={25 * tastes}'
    return Column(f'{tastes} tastes', ('HR@10', 'NDCG@10'), {'data.dataset': dataset})


TABLE = Table(
    title='Interests where they are known',
    caption='Generated users; whole catalogue ranked, seen items removed.',
    columns=tuple(column(tastes) for tastes in (1, 2, 4)),
    rows=(
        *(row(k, 16) for k in range(1, 8)),
        *(row(k, dim) for dim in (32, 64, 128) for k in (1, 4)),
    ),
    baseline='k = 1 dim 16',
    orderings=tuple(
        Ordering(
            f'k = 4 dim {dim}',
            f'k = 1 dim {dim}',
            CLAIM,
            'how the data are made',
            columns=('2 tastes', '4 tastes'),
        )
        for dim in (16, 32, 64, 128)
    ),
)
