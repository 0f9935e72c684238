"""RecTools' SASRec in its own process; run by its own Python, which has no jaxrec.

python rectools_peer.py SPEC.json, where SPEC names the data (npz) and the settings, see
`jaxrec.benchmarks.peer`. After the warm-up it prints one JSON line about itself; then for every
line it reads it does one turn (an epoch, or `batches` of one; or lists for `users`) and prints
{"seconds": ..., "count": ...}, the trained targets or the users served; of suite lists also
"milliseconds" of every call for one user. It ends with its input.
"""

import json
import os
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import rectools
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG, HitRate, calc_metrics
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools.models.nn.transformers.net_blocks import PreLNTransformerLayers

WARM_UP_BATCHES = 3
REPLIES = os.fdopen(os.dup(1), 'w')  # libraries may print; the replies must stay alone
os.dup2(2, 1)


def main():
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    warnings.filterwarnings('ignore')
    columns = np.load(spec['data'])
    interactions = pd.DataFrame(
        {
            Columns.User: columns['users'],
            Columns.Item: columns['items'],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(np.arange(len(columns['users'])), unit='s'),
        }
    )
    dataset = Dataset.construct(interactions)
    if spec['suite'] == 'train':
        train(spec, dataset)
    elif spec['suite'] == 'eval':
        recommend(spec, dataset, columns)
    else:
        lists(spec, dataset, interactions, columns['served'])


def train(spec, dataset):
    """The first epoch is the warm-up, cut after a few batches; every other one is a turn."""
    turns = Turns()
    make_model(spec, turns, spec['batches'] or 1.0).fit(dataset)


def recommend(spec, dataset, columns):
    """Fits for a few batches (speed does not depend on the weights), then serves."""
    model = make_model(spec, lightning.Callback(), WARM_UP_BATCHES, epochs=1)
    model.fit(dataset)
    users, targets = columns['test_users'], columns['test_items']
    truth = pd.DataFrame({Columns.User: users, Columns.Item: targets})
    metrics = {'HR': HitRate(k=spec['k']), 'NDCG': NDCG(k=spec['k'])}

    def serve(users):
        lists = model.recommend(users, dataset, k=spec['k'], filter_viewed=True)
        calc_metrics(metrics, lists, interactions=truth[: len(users)])

    serve(users[:1000])
    reply(about(model.lightning_model))
    while sys.stdin.readline():
        start = time.perf_counter()
        serve(users)
        reply({'seconds': time.perf_counter() - start, 'count': len(users)})


def lists(spec, dataset, interactions, users):
    """Lists for 256 users at once and one by one, in the faster of two ways.

    With the data set of all users, made before; or with one of the asked users alone, made in the
    call, as for users that were not there before. One turn takes both and gives the better of each.
    """
    model = make_model(spec, lightning.Callback(), WARM_UP_BATCHES, epochs=1)
    model.fit(dataset)
    of_user = dict(list(interactions.groupby(Columns.User)))

    def whole(some):
        model.recommend(some, dataset, k=spec['k'], filter_viewed=True)

    def alone(some):
        made = Dataset.construct(pd.concat([of_user[user] for user in some]))
        model.recommend(some, made, k=spec['k'], filter_viewed=True)

    def timed(call):
        many, seconds, each = users[: spec['many'] * spec['at_once']], 0.0, []
        for first in range(0, len(many), spec['many']):
            some = many[first : first + spec['many']]
            start = time.perf_counter()
            call(some)
            seconds += time.perf_counter() - start
        for user in users[len(many) :]:
            start = time.perf_counter()
            call(np.array([user]))
            each.append((time.perf_counter() - start) * 1e3)
        return seconds, len(many), each

    for call in (whole, alone):
        call(users[: spec['many']])
        call(users[:1])
    reply(about(model.lightning_model))
    while sys.stdin.readline():
        found = [timed(call) for call in (whole, alone)]
        seconds, count, _ = min(found)
        each = min((one[2] for one in found), key=np.median)
        reply({'seconds': seconds, 'count': count, 'milliseconds': each})


def make_model(spec, callback, batches, epochs=1_000_000):
    def trainer():
        return lightning.Trainer(
            max_epochs=epochs,
            limit_train_batches=batches,
            accelerator=spec['accelerator'],
            devices=1,
            callbacks=[callback],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )

    settings = dict(spec['model'])
    variant, ffn = settings.pop('variant'), settings.pop('ffn')
    if variant != '2018':
        layers = {'ligr': LiGRLayers, 'pre_ln': PreLNTransformerLayers}[variant]
        settings['transformer_layers_type'] = layers
        settings['transformer_layers_kwargs'] = {'ff_factors_multiplier': ffn}
    torch.manual_seed(0)
    return SASRecModel(get_trainer_func=trainer, **settings)


class Turns(lightning.Callback):
    """Holds every epoch but the first until it is asked for; counts what it trains on."""

    def on_fit_start(self, trainer, module):
        def stop_warm_up(batch, index):
            if trainer.current_epoch == 0 and index >= WARM_UP_BATCHES:
                return -1  # ends the epoch
            return None

        module.on_train_batch_start = stop_warm_up

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch and not sys.stdin.readline():
            os._exit(0)  # nobody asks for more
        self.targets, self.start = 0, time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.targets += int((batch['y'] != 0).sum())

    def on_train_epoch_end(self, trainer, module):
        seconds = time.perf_counter() - self.start
        if trainer.current_epoch == 0:
            reply(about(module))
        else:
            reply({'seconds': seconds, 'count': self.targets})


def about(module):
    parameters = sum(p.numel() for p in module.torch_model.parameters())
    return {
        'rectools': rectools.__version__,
        'torch': torch.__version__,
        'parameters': parameters,
        'items': module.torch_model.item_model.n_items - 1,
        'threads': torch.get_num_threads(),
    }


def reply(answer):
    print(json.dumps(answer), file=REPLIES, flush=True)


if __name__ == '__main__':
    main()
