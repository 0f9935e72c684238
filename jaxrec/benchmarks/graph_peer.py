"""LightGCN and its contrastive kin in plain torch, as SELFRec has them; run by its own Python.

python graph_peer.py SPEC.json, where SPEC names the data (npz: users from 0, items from 1) and the
settings, see `jaxrec.benchmarks.peer.graph_spec`. A batch is: propagate all nodes by
`torch.sparse.mm` with one COO matrix of users and items, BPR of the batch's pairs against one
negative each, decay of own vectors; with views also two (SGL, SimGCL) or no (XSimGCL) further
propagations and InfoNCE among the batch's distinct users and items; then Adam over all vectors. The
order and negatives are drawn with numpy. Turns and replies are those of `rectools_peer`.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

WARM_UP_BATCHES = 3


def main():
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    columns = np.load(spec['data'])
    run = Run(spec, columns['users'].astype(np.int64), columns['items'].astype(np.int64) - 1)
    run.turn(WARM_UP_BATCHES)
    reply(run.about())
    while sys.stdin.readline():
        start = time.perf_counter()
        count = run.turn(spec['batches'])
        reply({'seconds': time.perf_counter() - start, 'count': count})


class Run:
    """A model with its pairs, graph and optimiser."""

    def __init__(self, spec, users, items):
        torch.manual_seed(0)
        self.spec, self.pairs, self.rng = spec, (users, items), np.random.default_rng(0)
        self.sizes = int(users.max()) + 1, int(items.max()) + 1
        self.seen = np.unique(users * self.sizes[1] + items)
        self.device = torch.device(spec['device'])
        self.graph = self.normalised(users, items)
        shape = sum(self.sizes), spec['dim']
        self.own = torch.nn.Parameter(spec['deviation'] * torch.randn(shape, device=self.device))
        self.adam = torch.optim.Adam([self.own], lr=spec['lr'])

    def normalised(self, users, items):
        """D^-1/2 A D^-1/2, COO."""
        rows = np.concatenate([users, items + self.sizes[0]])
        columns = np.concatenate([items + self.sizes[0], users])
        degrees = np.maximum(np.bincount(rows, minlength=sum(self.sizes)), 1)
        values = 1 / np.sqrt(degrees[rows] * degrees[columns])
        index = torch.from_numpy(np.stack([rows, columns]))
        matrix = torch.sparse_coo_tensor(
            index, torch.from_numpy(values.astype(np.float32)), (sum(self.sizes),) * 2
        )
        return matrix.coalesce().to(self.device)

    def final(self, graph, noise=0.0):
        """The mean of the layers, and the one after `layer` layers."""
        x, found = self.own, [self.own]
        for _ in range(self.spec['layers']):
            x = torch.sparse.mm(graph, x)
            if noise:
                x = x + torch.sign(x) * F.normalize(torch.rand_like(x), dim=-1) * noise
            found.append(x)
        counted = found[0 if self.spec['own_layer'] else 1 :]
        return torch.stack(counted, 1).mean(1), found[min(self.spec['layer'], len(found) - 1)]

    def dropped(self):
        """The graph without some edges, normalised anew."""
        users, items = self.pairs
        count = len(users)
        kept = self.rng.choice(count, int(count * (1 - self.spec['rate'])), replace=False)
        return self.normalised(users[kept], items[kept])

    def turn(self, batches):
        """Trains an epoch, or its first `batches` > 0; returns the pairs."""
        users, items = self.pairs
        order, rows, done, views = self.rng.permutation(len(users)), self.spec['rows'], 0, None
        if self.spec['kind'] == 'edge_drop':
            views = self.dropped(), self.dropped()  # once an epoch, as the authors do
        for n, start in enumerate(range(0, len(order), rows)):
            if batches and n == batches:
                break
            some = order[start : start + rows]
            negatives = self.rng.integers(0, self.sizes[1], len(some))
            while len(bad := np.flatnonzero(self.known(users[some], negatives))):
                negatives[bad] = self.rng.integers(0, self.sizes[1], len(bad))
            self.step(*(torch.from_numpy(x) for x in (users[some], items[some], negatives)), views)
            done += len(some)
        return done

    def known(self, users, items):
        """Which of these pairs are trained on."""
        keys = users * self.sizes[1] + items
        at = np.minimum(np.searchsorted(self.seen, keys), len(self.seen) - 1)
        return self.seen[at] == keys

    def step(self, users, items, negatives, views):
        """One batch."""
        spec, first = self.spec, self.sizes[0]
        noise = spec['noise'] if spec['kind'] == 'one_pass' else 0.0
        x, layer = self.final(self.graph, noise)
        places = users, items + first, negatives + first
        user, item, other = (x[place] for place in places)
        loss = F.softplus((user * other).sum(1) - (user * item).sum(1)).mean()
        decay = sum((self.own[place] ** 2).sum() for place in places)
        loss = loss + spec['decay'] / 2 * decay / len(users)
        if spec['kind'] != 'none':
            if spec['kind'] == 'one_pass':
                a, b = x, layer
            elif spec['kind'] == 'noise':
                a, b = (self.final(self.graph, spec['noise'])[0] for _ in range(2))
            else:
                a, b = (self.final(view)[0] for view in views)
            for place in (torch.unique(places[0]), torch.unique(places[1])):
                loss = loss + spec['weight'] * self.contrast(a[place], b[place])
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def contrast(self, a, b):
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        scores = a @ b.T / self.spec['temperature']
        return F.cross_entropy(scores, torch.arange(len(a), device=scores.device))

    def about(self):
        return {
            'torch': torch.__version__,
            'parameters': self.own.numel(),
            'items': self.sizes[1],
            'threads': torch.get_num_threads(),
        }


def reply(answer):
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
