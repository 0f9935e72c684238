"""CDSRNP, our reading of it, on Amazon Food and Kitchen; ranks in the target's domain.

python -m jaxrec.train --config=experiments/cdsrnp_food_kitchen.py --workdir=runs/cdsrnp \
    --config.data.source=FOLDER
python -m jaxrec.evaluate --workdir=runs/cdsrnp
python -m jaxrec.evaluate --workdir=runs/cdsrnp --task.protocol=uniform --task.negatives=999

FOLDER holds ABXI's files afk_50_preprocessed.txt and map_item_50.txt. Without
--config.data.source they are downloaded. All users there have both domains; what the model is for
are users of one: `--config.task.overlap=0.25` leaves both domains to a quarter of them and hides
one from the others. `--config=experiments/cdsrnp_food_kitchen.py:llmcdsr` is the log of LLMCDSR,
where most users have one domain and those who are held out have both; with `:llmcdsr-alone` some of
one domain are held out too. The report tells users apart by what they have a history of.

The control is `--config.model.shuffled=True`: a gain that stays when the support's users have other
users' events in one domain is no transfer. Ablations: model.latent=0, model.bridge=False.

Settings are those of sasrec_food_kitchen.py. Where all users have both domains it is behind SASRec
on the merged log: NDCG@10 .0313 and .0333 (test, three and five seeds, stopped on validation), and
both of its parts cost. Seed 0 has .0307, without latent .0339, without bridge .0325, without both
.0359: z is the same for all users of a step, so that it can tell nothing of one, and what is
borrowed is of others. It cost more while gamma and beta had no bound: .0295, with the support
shuffled .0293; which users served hardly mattered, .0276 to .0278 (seed 0) with evaluate
--task.support_seed=0 .. 4. Where a quarter has both domains, which is what it is for
(--config.task.overlap=0.25, seed 0), it had .0243 without the bound; without latent it has .0292,
SASRec merged .0296, of users of one domain .0316 and .0311. Borrowing only what is missing, again
without latent (--config.model.borrow=missing), gives .0294 and .0313. So what is borrowed of others
adds nothing here, bounded, without z, or where it is missing alone.
Not run to the end on LLMCDSR's log.
"""

from jaxrec.config import Data, Optim, Train
from jaxrec.experiment import Experiment
from jaxrec.models import cdsrnp
from jaxrec.tasks import next_item

DATA = {
    '': ('food-kitchen', 'leave-one-out'),
    'llmcdsr': ('food-kitchen-llmcdsr', 'given-users'),
    'llmcdsr-alone': ('food-kitchen-llmcdsr-alone', 'given-users'),
}


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is of DATA."""
    dataset, split = DATA[arg]
    return Experiment(
        model=cdsrnp.Config(dim=64, max_len=32, dropout=0.4),
        task=next_item.Config(in_domain=True, split=split),
        data=Data(dataset=dataset),
        optim=Optim(learning_rate=1e-3, b1=0.9, b2=0.98),
        train=Train(batch_rows=32, epochs=60, patience=5),
    )
