"""torch-rechub's multi-task models in their own process; run by its own Python, without jaxrec.

python rechub_peer.py SPEC.json, as `rectools_peer` does it: a line about itself after the warm-up,
then for every line it reads an epoch (or `batches` of one) by the library's own trainer, and
{"seconds": ..., "count": ...}, the rows learnt. Its batches are cut from whole tensors, which is
faster than the library's own loader of single rows.
"""

import contextlib
import json
import os
import sys
import time

import numpy as np
import torch
import torch_rechub
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE, PLE
from torch_rechub.trainers import MTLTrainer

WARM_UP_BATCHES = 3
REPLIES = os.fdopen(os.dup(1), 'w')  # libraries may print; the replies must stay alone
os.dup2(2, 1)


def main():
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    columns = np.load(spec['data'])
    fields = {
        name.removeprefix('field.'): torch.from_numpy(columns[name])
        for name in columns.files
        if name.startswith('field.')
    }
    labels = torch.from_numpy(columns['labels'])
    torch.manual_seed(0)
    model = make_model(spec, fields, labels.shape[1])
    types = ['classification'] * labels.shape[1]
    optimizer = {'lr': spec['lr'], 'weight_decay': 0.0}
    trainer = MTLTrainer(model, types, optimizer_params=optimizer, device=spec['device'])
    trainer.train_one_epoch(batches(spec, fields, labels, WARM_UP_BATCHES))
    about = {
        'torch-rechub': getattr(torch_rechub, '__version__', ''),
        'torch': torch.__version__,
        'parameters': sum(p.numel() for p in model.parameters()),
        'threads': torch.get_num_threads(),
    }
    reply(about)
    while sys.stdin.readline():
        start = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train_one_epoch(counted(batches(spec, fields, labels, spec['batches'])))
        reply({'seconds': time.perf_counter() - start, 'count': counted.rows})


def make_model(spec, fields, labels):
    features = [feature(spec, name, column) for name, column in fields.items()]
    types = ['classification'] * labels
    towers = [{'dims': spec['tower_widths']}] * labels
    experts = {'dims': spec['expert_widths']}
    if spec['model'] == 'mmoe':
        return MMOE(features, types, spec['experts'], experts, towers)
    return PLE(
        features,
        types,
        spec['levels'],
        spec['own_experts'],
        spec['shared_experts'],
        experts,
        towers,
    )


def feature(spec, name, column):
    """A number, a category or a set of them, its codes from 0, which is padding."""
    if column.is_floating_point():
        return DenseFeature(name)
    size = int(column.max()) + 1
    if column.ndim == 2:
        return SequenceFeature(name, size, spec['dim'], pooling='mean', padding_idx=0)
    return SparseFeature(name, size, spec['dim'])


def batches(spec, fields, labels, count):
    """(fields, labels) of an epoch's batches in a new order; `count` > 0: so many."""
    order = torch.randperm(len(labels))
    for nth, rows in enumerate(order.split(spec['batch_rows'])):
        if count and nth == count:
            return
        yield {name: column[rows] for name, column in fields.items()}, labels[rows]


def counted(given):
    """Batches as they are given; `counted.rows`, how many rows they had."""
    counted.rows = 0
    for fields, labels in given:
        counted.rows += len(labels)
        yield fields, labels


def reply(answer):
    print(json.dumps(answer), file=REPLIES, flush=True)


if __name__ == '__main__':
    main()
