"""CDSRNP: cross-domain sequences by a neural process (arXiv 2410.13588), our reading.

The abstract says what there is: users of both domains are the support set, the users to predict
the query set; a latent z carries how domains go together, its prior is inferred from the support,
its posterior from both, and a KL term aligns them; a layer of interests picks what a user needs.
No code and no equations were to be had: what follows is made after the neural process of TaNP (Lin
et al., WWW 2021) on the encoders of C2DSR, which do not see events of the other domain.

With m, x, y the states of the merged log, of X and of Y after an event, x and y those of the last
event of their domain (a learned vector where there is none), and e the item vectors, which are the
output table too:

    pair        r_u = MLP([m; x; y; whether there are x, y; e(target)]), of a support user at the
                last training event, of a query user at the last target of the row
    latent      q(z | S) = N(mu(r), exp(v(r))), r the mean of r_u over S; z is drawn from the
                posterior in training, and is the mean of the prior when lists are made
    bridge      y~ = sum_s a_s y_s, a = softmax_s(x W x_s / sqrt(D)) over other users of the
                support, for who has events of X; x~ alike
    interests   s = m + attention(m W_n; states of own events, x~, y~),
                o = (1 + tanh gamma(z)) s + tanh beta(z)
    prediction  x + g (o - x), g = sigmoid(w_n [m; x; s] + b_n), against items of X; Y alike

So a gate of 0 leaves SASRec on the events of a domain, and a user of X alone has y~ to go by in Y.
The bridge alone leaves out who is predicted: z of S is also of the own pair of a user of S, in
steps and in lists, with the last training event as target.
The loss is the cross-entropy of every next item among those of its domain, plus kl times the KL of
posterior and prior per dimension of z.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.devices.mesh import TABLE, placed, replicated
from jaxrec.errors import UserError
from jaxrec.models.c2dsr import Encoder
from jaxrec.nn import embeddings
from jaxrec.nn.attention import causal_mask, softmax_among
from jaxrec.nn.dropout import Key
from jaxrec.nn.embeddings import lookup, values_at
from jaxrec.nn.linear import linear_layer, product
from jaxrec.problem import Inputs, Model, ModelConfig

_STREAMS = ('encode', 'support', 'drawn', 'latent')  # of a step's key
DOMAINS = 1, 2


@dataclasses.dataclass
class Config(ModelConfig):
    """CDSRNP's hyper-parameters; the defaults are ours."""

    masked: ClassVar[bool] = True  # encoders of one domain do not see events of the other

    dim: int = field(64, least=1)
    blocks: int = field(1, least=0)
    heads: int = field(1, least=1)
    max_len: int = field(32, least=1)  # newest events that the model sees
    dropout: float = field(0.2, least=0, below=1)
    latent: int = field(32, least=0)  # width of z; 0 = there is none
    bridge: bool = True  # states borrowed of the support
    # who borrows the state of a domain: everybody, or who has no event of it
    borrow: str = field('all', choices=('all', 'missing'))
    # the control: support users' events of one domain are those of other users
    shuffled: bool = False
    support: int = field(128, least=1)  # users of a training step
    served: int = field(512, least=1)  # of lists and evaluations, always the same ones
    pool: int = field(8192, least=2)  # users of both domains that they are drawn from
    kl: float = field(0.1, least=0)
    kl_steps: int = field(1000, least=0)  # in which its weight rises from 0
    init: str = field('xavier_normal', choices=embeddings.INITS)

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if self.dim % self.heads:
            raise UserError(f'model.dim={self.dim} is not a multiple of model.heads={self.heads}')
        if self.borrow == 'missing' and not self.bridge:
            raise UserError("model.borrow='missing' with model.bridge=False: nothing is borrowed")
        if max(self.support, self.served) > self.pool:
            raise UserError(
                f'model.support={self.support} and model.served={self.served} are users of '
                f'model.pool={self.pool}: that is the most there can be'
            )

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'CDSRNP':
        """Builds the model for items 1..sizes['item']."""
        return CDSRNP(self, sizes['item'], rngs=rngs)

    def inputs(self) -> Inputs:
        """What the model wants of the data."""
        asked = {'support': self.pool, 'shuffled': self.shuffled}
        return Inputs(self.max_len, users=True, domains=True, **asked)

    def whole_batch(self) -> str:
        """The posterior is inferred from the users of a batch together."""
        return 'model.latent above 0' if self.latent else ''


class CDSRNP(Model):
    """Encoders of the merged log and of each domain, and what support users lend to others."""

    def __init__(self, config: Config, num_items: int, *, rngs: nnx.Rngs):
        self.config, self.num_items, self.max_len = config, num_items, config.max_len
        dim, init = config.dim, embeddings.INITS[config.init]
        linear = linear_layer(init, jnp.float32)

        def square():
            return nnx.Param(init(rngs.params(), (dim, dim), jnp.float32))

        self.encoders = nnx.List(Encoder(config, rngs=rngs) for _ in range(3))
        self.table = nnx.Param(embeddings.item_table(config.init, dim, num_items, rngs.params()))
        self.missing = nnx.Param(embeddings.INITS['normal'](rngs.params(), (2, dim)))
        self.bridges = nnx.List(square() for _ in DOMAINS if config.bridge)  # x W x_s, y W y_s
        self.interests = nnx.List(square() for _ in DOMAINS)
        self.gates = nnx.List(linear(3 * dim, 1, rngs=rngs) for _ in DOMAINS)
        self.process = Process(dim, config.latent, linear, rngs=rngs) if config.latent else None

    def catalogue(self, constants: dict) -> dict:
        """'items' [rows, 2 D] for dot products with `queries`, and what these read besides.

        That is the item 'table', the items' 'domains', the 'support' and what z makes of it.
        """
        table, domain = self.table[...], placed(constants['domains'][:, None], TABLE)
        count = self._count(constants, self.config.served)
        support = self._support(constants, constants['support']['order'][:count])
        found = {
            'items': jnp.concatenate([table * (domain == n) for n in DOMAINS], axis=1),
            'table': table,
            'domains': constants['domains'],
            'support': {name: support[name] for name in ('own', 'users')},
        }
        if self.process is not None:
            mean, _ = self.process.distribution(*self._summed(support, support['weights']))
            found['film'] = self.process.film(mean)
        return found

    def queries(self, batch: dict, catalogue: dict) -> jax.Array:
        """[B, 1, 2 D] of right-aligned histories: a vector for items of X, and one for those of Y.

        Users that are support users themselves borrow nothing of themselves, where the batch says
        who they are: `users` int32 [B].
        """
        users = batch['users'][:, None] if 'users' in batch else None
        read = self._read(batch, users, catalogue, last=1)
        vectors = self._vectors(read, catalogue['support'], catalogue.get('film'))
        return jnp.concatenate(vectors, axis=-1)

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
        """Next items among those of their domain, and the KL of posterior and prior."""
        config, keys = self.config, rng.keys(key, *_STREAMS)
        table = self.table[...]
        given = {'table': table, 'domains': constants['domains']}
        everyone = jax.random.permutation(keys['drawn'], len(constants['support']['users']))
        chosen = everyone[: self._count(constants, config.support)]
        support = self._support(constants, chosen, keys['support'])
        read = self._read(batch, batch['users'], given, keys['encode'])
        terms, film, new = {}, None, carry
        if self.process is not None:
            query = {**read, 'target': lookup(table, batch['targets'])}
            segments = batch['segments']
            following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
            newest = batch['weights'] * (segments != following)
            prior = self._summed(support, support['weights'])
            both = [a + b for a, b in zip(prior, self._summed(query, newest), strict=True)]
            prior, posterior = self.process.distribution(*prior), self.process.distribution(*both)
            terms['kl'] = losses.gaussian_kl(posterior, prior)
            film = self.process.film(drawn(posterior, keys['latent']))
            new = {'steps': carry['steps'] + 1}
        vectors = self._vectors(read, support, film)
        wanted = values_at(constants['domains'], batch['targets'])
        terms['softmax'] = losses.in_domain(
            jnp.where((wanted == 2)[..., None], vectors[1], vectors[0]),
            table,
            batch['targets'],
            batch['weights'],
            domain=wanted,
            of_domain=constants['of_domain'],
        )
        value = terms['softmax']
        if self.process is not None:
            weight = config.kl * jnp.minimum(1.0, carry['steps'] / max(config.kl_steps, 1))
            value = value + weight * terms['kl']
        return value, (terms, new)

    def carry(self) -> dict:
        """How many steps the weight of the KL has risen for."""
        return {'steps': jnp.zeros((), jnp.int32)} if self.config.latent else {}

    def _read(self, batch, users, given, key: Key = None, last: int = 0) -> dict:
        """States of histories after every event, or after the last ones.

        Args:
          batch: items, segments int32 [B, L].
          users: int32 [B, L], or [B, last], whose they are; None = nobody knows.
          given: 'table' and 'domains' of the items.
          key: of dropout.
          last: see above.

        Returns:
          merged [B, M, D]; own, of each domain the state after its last event [B, M, D], and there
          bool [B, M], whether there was one; events [B, L, D], of every event the state of its
          domain, and seen bool [B, M, L]; users.
        """
        items, segments = batch['items'], batch['segments']
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        domain = values_at(given['domains'], items)
        hidden = [
            encoder(items, given['table'], segments, domain == n if n else segments > 0, keys[n])
            for n, encoder in enumerate(self.encoders)
        ]
        seen, count = causal_mask(segments)[:, 0, -last:], jnp.arange(1, items.shape[1] + 1)
        own, there = [], []
        for n in DOMAINS:
            mine = seen & (domain == n)[:, None]
            place = jax.nn.one_hot((mine * count).argmax(-1), len(count), dtype=hidden[n].dtype)
            there.append(mine.any(-1))
            state = jnp.einsum('bml,bld->bmd', place, hidden[n])
            own.append(jnp.where(there[-1][..., None], state, self.missing[...][n - 1]))
        return {
            'merged': hidden[0][:, -last:],
            'own': own,
            'there': there,
            'events': jnp.where((domain == 2)[..., None], hidden[2], hidden[1]),
            'seen': seen,
            'users': users,
        }

    def _support(self, constants, chosen, key: Key = None) -> dict:
        """States of support users [K, 1, D] before their last training event, the 'target'."""
        rows = constants['support']['items'].at[chosen].get(mode='clip')
        items, targets = rows[:, :-1], rows[:, -1:]
        batch = {'items': items, 'segments': (items > 0).astype(jnp.int32)}
        given = {'table': self.table[...], 'domains': constants['domains']}
        users = constants['support']['users'].at[chosen].get(mode='clip')
        return {
            **self._read(batch, users, given, key, last=1),
            'target': lookup(given['table'], targets),
            'weights': jnp.ones(targets.shape, jnp.float32),
        }

    def _summed(self, read, weights):
        """(sum [D] of the pair representations, how many there are)."""
        r = self.process.pairs(read) * weights[..., None]
        return r.sum((0, 1)), weights.sum()

    def _vectors(self, read, support, film) -> list[jax.Array]:
        """[B, M, D] for the items of each domain; `film` of z, None without one."""
        lent = self._borrowed(read, support) if self.config.bridge else []
        merged, length, found = read['merged'], read['events'].shape[1], []
        for own, interest, gate in zip(read['own'], self.interests, self.gates, strict=True):
            query = product(merged, interest[...])
            logits = [jnp.einsum('bmd,bld->bml', query, read['events'])]
            logits += [(query * state).sum(-1, keepdims=True) for state, _ in lent]
            shown = [read['seen'], *(there[..., None] for _, there in lent)]
            logits, shown = (jnp.concatenate(x, axis=-1) for x in (logits, shown))
            weights = softmax_among(logits * own.shape[-1] ** -0.5, shown)
            mixed = merged + jnp.einsum('bml,bld->bmd', weights[..., :length], read['events'])
            for nth, (state, _) in enumerate(lent, length):
                mixed = mixed + weights[..., nth, None] * state
            wanted = mixed
            if film is not None:
                scale, shift = film
                wanted = (1 + scale) * mixed + shift
            opened = jax.nn.sigmoid(gate(jnp.concatenate([merged, own, mixed], axis=-1)))
            found.append(own + opened * (wanted - own))
        return found

    def _borrowed(self, read, support) -> list[tuple[jax.Array, jax.Array]]:
        """x~ and y~ [B, M, D], each with whether there is one, bool [B, M]."""
        found = []
        for n in DOMAINS:
            other = 2 - n  # index of the domain by which users are compared
            mine, theirs = read['own'][other], replicated(support['own'][other][:, 0])
            lent = replicated(support['own'][n - 1][:, 0])
            query = product(mine, self.bridges[other][...])
            logits = jnp.einsum('bmd,kd->bmk', query, theirs) * mine.shape[-1] ** -0.5
            borrows = read['there'][other]
            if self.config.borrow == 'missing':
                borrows &= ~read['there'][n - 1]
            shown = jnp.broadcast_to(borrows[..., None], logits.shape)
            if read['users'] is not None:
                shown = shown & (read['users'][..., None] != replicated(support['users']))
            state = jnp.einsum('bmk,kd->bmd', softmax_among(logits, shown), lent)
            found.append((state, shown.any(-1)))
        return found

    def _count(self, constants, most):
        return min(most, len(constants['support']['users']))


class Process(nnx.Module):
    """The neural process: pairs of a user and a target, a distribution of z, and what z does."""

    def __init__(self, dim: int, width: int, linear, *, rngs: nnx.Rngs):
        self.inner, self.outer = linear(4 * dim + 2, dim, rngs=rngs), linear(dim, dim, rngs=rngs)
        self.hidden = linear(dim, dim, rngs=rngs)
        self.mean, self.log_variance = (linear(dim, width, rngs=rngs) for _ in range(2))
        # 0 at first: o = s, and z learns to change it
        self.scale, self.shift = (nnx.Param(jnp.zeros((width, dim))) for _ in range(2))

    def pairs(self, read: dict) -> jax.Array:
        """r [B, M, D] of the states of `CDSRNP._read` and the vectors 'target' [B, M, D]."""
        there = [x[..., None].astype(jnp.float32) for x in read['there']]
        parts = [read['merged'], *read['own'], *there, read['target']]
        return self.outer(jax.nn.relu(self.inner(jnp.concatenate(parts, axis=-1))))

    def distribution(self, total: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance [Z] of z by pairs whose representations add up to `total` [D]."""
        hidden = jax.nn.relu(self.hidden((total / count)[None, None]))
        return self.mean(hidden)[0, 0], self.log_variance(hidden)[0, 0]

    def film(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """tanh gamma and tanh beta [D] of z [Z], both linear.

        Bounded as in TaNP's code: one z serves all users of a batch, and without a bound
        gamma grows to 15, a temperature of the softmax that learns the training events by heart.
        """
        return jnp.tanh(z @ self.scale[...]), jnp.tanh(z @ self.shift[...])


def drawn(distribution: tuple[jax.Array, jax.Array], key: jax.Array) -> jax.Array:
    """A sample [Z] of a diagonal Gaussian."""
    mean, log_variance = distribution
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
