r"""LoID on MovieLens-1M: ratings from ids and the titles and genres of what a user liked before.

python -m jaxrec.train --config=experiments/loid_ml1m.py --workdir=runs/loid \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/loid

FOLDER holds ratings.dat and movies.dat. `--config=experiments/loid_ml1m.py:NAME,SPLIT` with a NAME
of MODELS and the number of the random split; --config.task.split=temporal splits by time,
--config.task.shuffled=True is the control (films swap their texts), --config.task.leak=True shows
what the authors' input, which has held-out rows, is worth. Evaluation prints biases and a biased
factorisation beside it. No review text can be had here: a film's text is its title and genres, a
user's those of the last five films liked before the row, and published numbers are of others.

Plugins, each learnt on the films of one first genre, merged for a third:

python -m jaxrec.train --config=experiments/loid_ml1m.py:action --workdir=runs/action ..
python -m jaxrec.train --config=experiments/loid_ml1m.py:comedy --workdir=runs/comedy \
    --config.train.start_from=runs/action ..
python -m jaxrec.train --config=experiments/loid_ml1m.py:drama --workdir=runs/drama \
    --config.train.start_from=runs/comedy ..

The ids of users go along from run to run: the control of the plugins is the last command with
--config.model.plugins="()".

One run each, split and seed 0, test MSE / MAE, and MSE of ratings of films with 1 to 10 training
ratings (276 of them; 728 by time); about 20, 12 and 2 s of a CPU core an epoch of loid, no-align
and mf, 7 to 12 epochs, on a busy machine:

                            random                    by time
biases                      .8231 / .7185   1.158     .8646 / .7286   1.086
biased factors, ALS         .7330 / .6706   1.127     .8330 / .7121   1.089
mf, the model without texts .7327 / .6695   1.128     .8328 / .7115   1.096
no-align                    .7249 / .6672   1.008     .8269 / .7139   1.069
no-align, texts shuffled    .7344 / .6733   1.099
loid                        .7216 / .6664   1.039

What the texts say helps, most where ratings are few; the alignment helps overall, not there. Texts
without ids (texts) gain next to nothing over biases: validation MSE .8202 after 3 epochs at a rate
of 3e-3, .8216 at 5e-3. Worse under dropout of .2, and none in products: no-align .7420 (test), the
weight .2 of the alignment .8196 in validation after 5 epochs (no-align .7463), an alignment of .05
that moves texts alone .8160 after 2 (no-align .7879). The triplet, the linear head, the leak and
plugins were not run to the end.

The ranking head does not rank better than the rating head does. GAUC of what a user rated above 3
(random split, test): biases .7387, biased factors .7774, mf .7781, loid .7815; mf-ranking .7714,
ranking .7474 (.7428 when nothing held the texts' vectors short, .7600 when it starts from loid).
"""

import dataclasses

from jaxrec.config import Data, Optim, Texts, Train
from jaxrec.experiment import Experiment
from jaxrec.models.loid import Config
from jaxrec.tasks import warm_ratings

BASE = Config()
SOURCES = 'Action', 'Comedy'
MODELS = {
    'loid': BASE,
    'no-align': dataclasses.replace(BASE, align=0.0),
    'triplet': dataclasses.replace(BASE, alignment='triplet'),
    'linear': dataclasses.replace(BASE, head='linear'),
    'authors': dataclasses.replace(BASE, head='linear', alignment='triplet', rank=32, alpha=32.0),
    'ranking': dataclasses.replace(BASE, loss='bpr', decay=0.04),
    'mf-ranking': dataclasses.replace(BASE, loss='bpr', decay=0.04, texts=False, align=0.0),
    'texts': dataclasses.replace(BASE, ids=False, align=0.0),
    'mf': dataclasses.replace(BASE, texts=False, align=0.0),
    'action': dataclasses.replace(BASE, plugins=SOURCES[:1], learns=SOURCES[0]),
    'comedy': dataclasses.replace(BASE, plugins=SOURCES, learns=SOURCES[1]),
    'drama': dataclasses.replace(BASE, plugins=SOURCES),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SPLIT', loid and 0 if empty."""
    name, _, split = arg.partition(',')
    model = MODELS[name or 'loid']
    return Experiment(
        model=model,
        task=warm_ratings.Config(
            texts=Texts('tfidf', 128) if model.texts else Texts(),
            split_seed=int(split or 0),
            domain=name.capitalize() if model.plugins else '',
        ),
        data=Data(dataset='ml-1m-texts'),
        optim=Optim(learning_rate=2e-3, b2=0.999),
        train=Train(
            batch_rows=2048,
            epochs=20,
            patience=2,
            metric='GAUC' if model.loss == 'bpr' else '',
        ),
    )
