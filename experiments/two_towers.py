r"""Two towers beside SASRec and KuaiFormer, on three data sets, under the same in-batch negatives.

python -m jaxrec.train --config=experiments/two_towers.py:ml-1m,mean --workdir=runs/towers \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/towers --task.popularity=True

The argument is 'DATA,MODEL,SEED': ml-1m, beauty-attributes or kuairand-pure-watched, and one of
MODELS. FOLDER holds the data set's files. The item tower's own term (masks of an item's features)
is rfm, rfm-independent or cfm; `mean` is the same without it. Of KuaiRand seven features of videos
are read, of MovieLens two, of Beauty one, so that there a view has the id or nothing. mf-bpr is
matrix factorisation, beside which evaluation prints EASE where the catalogue is small enough. The
user tower reads no user id but in `user-id`: of a handful of events a user it learns them by heart
(Beauty, seed 0: valid NDCG@10 .0375 with it, .0522 without). All are rows of
experiments/tables/two_towers.py.

KuaiRand-Pure, five seeds, test HR@10 / NDCG@10 (results/two_towers): mean .0631 / .0307, no-logq
.0092 / .0045, streaming (in batches) .0546 / .0267, examples .0581 / .0283, mixed .0607 / .0297,
user-id .0462 / .0233, transformer .0526 / .0261, sasrec .0561 / .0270; popularity has .0229, EASE
.0602 / .0302. The item tower's own term gains nothing, on items with few events neither: rfm .0591
/ .0290, rfm-independent .0612 / .0298, cfm .0599 / .0295. Other data were not run to the end.
"""

from jaxrec.config import Data, Feature, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import kuaiformer, lightgcn, sasrec, two_tower
from jaxrec.objectives.in_batch import InBatch
from jaxrec.objectives.item_views import ItemViews
from jaxrec.tasks import next_item

FEATURES = {
    'ml-1m': (Feature('genres', 'set', 18), Feature('year', 'quantile', 10)),
    'beauty-attributes': (Feature('attributes', 'set', 637),),
    'kuairand-pure-watched': (
        Feature('duration', 'log', size=20, cap=300_000),  # milliseconds
        Feature('author', 'category', size=8000),
        Feature('music', 'category', size=8000),
        Feature('music_type', 'category', size=8),
        Feature('upload_type', 'category', size=16),
        Feature('video_type', 'category', size=4),
        Feature('tags', 'set', size=69),
    ),
}
COSINE = {'similarity': 'cosine', 'temperature': 0.05}  # as the towers have it
SSL = {'weight': 0.3, 'temperature': 0.1}
EPOCHS = {'ml-1m': 10}  # of other data 15
MODELS = {
    'mean': {},
    'user-id': {'user_id': True},
    'no-logq': {'in_batch': InBatch(logq='none')},
    'streaming': {'in_batch': InBatch(logq='streaming')},
    'examples': {'in_batch': InBatch(logq='examples')},
    'mixed': {'in_batch': InBatch(uniform=1024)},
    'transformer': {'history': 'transformer'},
    'rfm': {'item_views': ItemViews(masks='complementary', **SSL)},
    'rfm-independent': {'item_views': ItemViews(masks='independent', **SSL)},
    'cfm': {'item_views': ItemViews(masks='correlated', **SSL)},
    'sasrec': {},
    'kuaiformer': {},
    'mf-bpr': {},
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'DATA,MODEL,SEED', ml-1m, mean and 0 where they are empty."""
    data, name, seed = (*arg.split(','), '', '', '')[:3]
    data, name = data or 'ml-1m', name or 'mean'
    if name == 'mf-bpr':
        return matrix_factorisation(data, int(seed or 0))
    given = {'dim': 64, 'max_len': 50, 'features': FEATURES[data], 'feature_dim': 16}
    if name == 'sasrec':
        model = sasrec.Config(
            **given,
            variant='pre_ln',
            blocks=1,
            dropout=0.2,
            embedding_dropout=0.2,
            loss='in_batch',
            in_batch=InBatch(**COSINE),
        )
    elif name == 'kuaiformer':
        in_batch = InBatch(**COSINE)
        model = kuaiformer.Config(
            **given, blocks=1, heads=1, interests=2, compress=(), newest=50, in_batch=in_batch
        )
    else:
        model = two_tower.Config(**{**given, 'user_id': False, **MODELS[name]})
    return Experiment(
        task=next_item.Config(windows='cuts', cuts=8),
        model=model,
        data=Data(dataset=data),
        optim=Optim(learning_rate=1e-3),
        train=Train(batch_rows=128, epochs=EPOCHS.get(data, 15), patience=3, seed=int(seed or 0)),
    )


def matrix_factorisation(data: str, seed: int) -> Experiment:
    """MF-BPR on the same split."""
    return Experiment(
        task=next_item.Config(windows='pairs', unseen_negatives=1),
        model=lightgcn.Config(layers=0),
        data=Data(dataset=data),
        optim=Optim(learning_rate=5e-3, b2=0.999),
        train=Train(batch_rows=1024, epochs=60, patience=3, seed=seed),
    )
