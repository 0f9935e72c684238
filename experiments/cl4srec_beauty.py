r"""CL4SRec on Amazon Beauty (S3-Rec file), whole catalogue ranked, beside SASRec without the term.

python -m jaxrec.train --config=experiments/cl4srec_beauty.py --workdir=runs/cl4srec
python -m jaxrec.evaluate --workdir=runs/cl4srec

Test, protocol full, HR@10 / NDCG@10, seeds 0, 1, 2 (--config.train.seed): .0669 / .0363, .0673 /
.0357, .0644 / .0347; without the term (contrast.weight=0) .0655 / .0352, .0698 / .0366, .0658 /
.0349. About 3 minutes without the term and 12 with it on one CPU core. Published for CL4SRec: .0642
to .0683, for SASRec with BCE .0605 to .0627.

The encoder is regularised more than the paper's (dropout .5 on the embeddings, .2 on the item
table, averaged parameters; dim 128, one block), which is worth more than the term: with the paper's
two blocks of dim 64 and dropout .5 it was .0562 without and .0584 with the term (crop .6, mask .3,
reorder .6, dot products, weight .1). Those settings of the term slow the encoder here down; cosines
at temperature .5, milder rates and weight .03 do not.

`:softmax` is the same with the exact softmax as main loss, not run yet. The sweep has both main
losses without the term and with it, by one augmentation or by all three:

python launch/sweep.py --experiment=experiments/cl4srec_beauty.py --workdir=runs/cl4srec_beauty \
    --run --seeds=0,1,2
"""

from jaxrec.config import Data, Experiment, Optim, Train
from jaxrec.contrast import Contrast
from jaxrec.models import cl4srec


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is the main loss: '' (bce, as in the paper) or 'softmax'."""
    loss = {'': 'bce', 'softmax': 'softmax'}[arg]
    return Experiment(
        model=cl4srec.Config(
            dim=128,
            blocks=1,
            max_len=50,
            dropout=0.2,
            embedding_dropout=0.5,
            table_dropout=0.2,
            loss=loss,
            negatives=1,
            contrast=Contrast(
                weight=0.03,
                crop=0.8,
                mask=0.2,
                reorder=0.2,
                similarity='cosine',
                temperature=0.5,
            ),
        ),
        data=Data(dataset='beauty'),
        optim=Optim(learning_rate=1e-3, b2=0.98, ema=0.995),
        # 36 rows hold about the 256 users of the paper's batch
        train=Train(batch_rows=36, epochs=200, eval_every=5, patience=4),
    )


def sweep() -> dict[str, tuple[str, dict]]:
    """Rows: main loss / augmentation -> (argument, overrides)."""
    rates = {'crop': 0.8, 'mask': 0.2, 'reorder': 0.2}
    rows = {}
    for loss, arg in (('bce', ''), ('softmax', 'softmax')):
        rows[f'{loss}/none'] = (arg, {'model.contrast.weight': 0.0})
        for one in rates:
            only = {f'model.contrast.{name}': r * (name == one) for name, r in rates.items()}
            rows[f'{loss}/{one}'] = (arg, only)
        rows[f'{loss}/all'] = (arg, {})
    return rows
