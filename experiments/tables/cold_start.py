r"""Ratings of cold users: CDRNP, its ablations and controls, PTUPCDR and EMCDR by ratings.

python -m jaxrec.table --table=experiments/tables/cold_start.py --workdir=runs/tables/cold_start \
    --seeds=5 --results=results

Prepare both data sets first (`python -m jaxrec.prepare --dataset=ml-1m-drama-comedy
--source=FOLDER`, douban-ratings). Every cell keeps what needs no training beside it, by seed: item
mean, item and mapped source bias, common factors (CMF), EMCDR by least squares, and neighbours. In
the control users have another user's ratings in the source, so that it loses the bias which is
carried over too, as no other row does. The published table is of Amazon ratings, where dot products
without biases lose to the mean of the item, and stands in no column here: PTUPCDR, Movie to Music
at 20 %, MAE 1.110 and RMSE 1.454 (DiffCDR, arXiv 2402.02182, Table 2).
"""

from jaxrec.paper.spec import Column, Ordering, Row, Table

SHOWN = ('MAE', 'MSE')
OWN = {'task.split_seed': -1}  # users held out by train.seed
ML, DOUBAN = 'experiments/cdrnp_ml1m.py', 'experiments/cdrnp_douban.py'
ML_20, ML_80 = 'ML-1M drama to comedy 20 %', 'ML-1M drama to comedy 80 %'
BOOK, MUSIC = 'Douban book to music 20 %', 'Douban music to book 20 %'
CDRNP, PTUPCDR, EMCDR = 'CDRNP', 'PTUPCDR', 'EMCDR by ratings'
ALONE, SHUFFLED = 'CDRNP decoder alone', 'CDRNP users shuffled'
NO_REMAINER, NO_FILM = 'CDRNP without remainer', 'CDRNP without FiLM'


def row(name: str, key: str, overrides: dict | None = None) -> Row:
    """One of both experiment files, in all columns."""
    files = {ML_20: ML, ML_80: ML, BOOK: DOUBAN, MUSIC: DOUBAN}
    return Row(name, {column: f'{file}:{key}' for column, file in files.items()}, overrides or {})


TABLE = Table(
    title='Ratings of cold users',
    caption='A share of the users of both domains, drawn anew with every seed, has no rating in '
    'the target; a rating is tested once, by its mean over the seeds that hold it out. The epoch '
    'of the least validation RMSE, of other cold users, is tested. MSE is RMSE squared.',
    columns=(
        Column(ML_20, SHOWN, OWN),
        Column(ML_80, SHOWN, {**OWN, 'task.cold_share': 0.8}),
        Column(BOOK, SHOWN, OWN),
        Column(MUSIC, SHOWN, {**OWN, 'task.source': 'music', 'task.target': 'book'}),
    ),
    rows=(
        row(EMCDR, 'emcdr'),
        row(PTUPCDR, 'ptupcdr'),
        row(ALONE, 'no-process'),
        row(NO_REMAINER, 'no-remainer'),
        row(NO_FILM, 'no-film'),
        row(CDRNP, 'cdrnp'),
        row(SHUFFLED, 'cdrnp', {'task.shuffled': True}),
    ),
    baseline=EMCDR,
    by_column=True,
    orderings=(
        Ordering(
            PTUPCDR,
            EMCDR,
            'PTUPCDR improves on EMCDR: MAE 1.360 to 1.110, Movie to Music, 20 %',
            'DiffCDR, arXiv 2402.02182, Table 2',
        ),
        Ordering(CDRNP, PTUPCDR, 'CDRNP improves on PTUPCDR', 'arXiv 2401.12732, abstract'),
        Ordering(CDRNP, EMCDR, 'CDRNP improves on EMCDR', 'arXiv 2401.12732, abstract'),
        Ordering(CDRNP, SHUFFLED, "it learns from users' own source ratings", 'its control'),
        Ordering(CDRNP, ALONE, 'process, remainer and FiLM together help', 'ablation'),
        Ordering(CDRNP, NO_REMAINER, 'the preference remainer helps', 'ablation'),
        Ordering(CDRNP, NO_FILM, 'FiLM, and the attention that it alone reads, help', 'ablation'),
    ),
)
