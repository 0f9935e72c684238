r"""SASRec with text tokens on Amazon Video Games (2018), beside SASRec; items unseen in training.

python -m jaxrec.train --config=experiments/sasrec_text_games.py --workdir=runs/text \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/text --task.item_lists=True

FOLDER holds test.inter and items.tsv of the set. `--config=experiments/sasrec_text_games.py:NAME,
SEED` with NAME of ids (SASRec), ids+texts, texts, and start (SASRec whose table begins with the
texts' vectors). The report tells targets without training events apart ('training events', 0), for
popularity and the cosine of texts too. Beauty: --config.data.dataset=beauty
--config.data.source=FILE --config.data.texts=PHRASES --config.data.text_columns=item,asin,text.

Five seeds (results/text), test HR@10 / NDCG@10 / HR@100. Games: ids .1258 / .0717 / .3662,
ids+texts .1275 / .0717 / .3730; Beauty: .1000 / .0599 / .2571 and .1017 / .0598 / .2741, start
(three seeds) .1014 / .0610 / .2638. Targets without training events, 104 and 138: ids and
popularity find none, ids+texts has HR@10 .0096 and .0087 (a target or two), HR@100 .116 and .204.
Targets of 1 to 5 events lose at the top by the texts: HR@10 .0033 to .0020 and .0261 to .0179. An
H200 takes six minutes for five seeds together on Games, three on Beauty, with a dozen other
trainings on it; a CPU core about an hour for one on Games.
"""

import dataclasses

from jaxrec.config import Data, Optim, Texts, Train
from jaxrec.experiment import Experiment
from jaxrec.models import sasrec
from jaxrec.nn.item_tokens import ItemTokens
from jaxrec.tasks import next_item

BASE = sasrec.Config(
    dim=128,
    blocks=1,
    max_len=50,
    dropout=0.2,
    embedding_dropout=0.5,
    table_dropout=0.2,
    label_smoothing=0.1,
)
TEXTS = Texts('tfidf', 256)
NAMES = ('ids', 'ids+texts', 'texts', 'start')


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is 'NAME,SEED', of NAMES, ids+texts and 0 if empty."""
    name, _, seed = arg.partition(',')
    name = name or 'ids+texts'
    made_of = name if name in ('ids+texts', 'texts') else 'ids'
    return Experiment(
        task=next_item.Config(
            cutoffs=(10, 20, 100),
            texts=Texts() if name == 'ids' else TEXTS,
            start_table=name == 'start',
        ),
        model=dataclasses.replace(BASE, items=ItemTokens(made_of, id_dropout=0.2)),
        data=Data(dataset='games-titles'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        train=Train(batch_rows=24, epochs=30, patience=3, eval_every=2, seed=int(seed or 0)),
    )
