"""CDRNP: a neural process from source preferences to ratings in the target domain (WSDM 2024).

Of the paper (Li et al., arXiv 2401.12732) we know the parts and not the equations: encoder of
support triples, a latent z whose prior is of the support and whose posterior is of support and
query, a preference remainer, an adaptive decoder. The forms here are our reading, after TaNP.

A triple is (user, item, rating) of a training user: e = MLP([p_u; c_u; q_i; r - base]), with p_u
the user's factors in the source, c_u the weighted mean of what the user likes there, q_i the
item's factors in the target, base = mean + b_i + k b_u. z is of the mean of all e. The
deterministic r of a query is attention over the e of the support, by [p; c; q] of both; a user's
own triples are not seen. The remainer adds r' = r + sum_m softmax_m(r . mem_m) mem_m. The decoder
reads [p_u; c_u; q_i; (p_u M) * q_i; z] by layers h = relu((1 + gamma(r')) (W x + b) + beta(r')) and
adds to the base. Its last layer begins at 0, so that training begins with the base. Of triples that
are learnt, b_i and q_i are of the item's other ratings (`data.ratings.without_own`).

The support is some hundred ratings of all, so z is the same for everybody, and r, of a few ratings
of the same item at most, tells little that the decoder does not know: without both it does as well
(results/cold_start). With adaptive=False nothing reads r.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.devices.mesh import replicated
from jaxrec.models.ptupcdr import Layers, Preferences, base, item_factors
from jaxrec.nn.attention import softmax_among
from jaxrec.nn.dropout import Key, dropout, split_key
from jaxrec.nn.embeddings import lookup
from jaxrec.problem import Inputs, Model, ModelConfig

_STREAMS = ('support', 'latent', 'decode')  # of a step's key
_LEAST = 0.1  # deviation of z


@dataclasses.dataclass
class Config(ModelConfig):
    """CDRNP's hyper-parameters."""

    hidden: int = field(64, least=1)  # of all networks
    latent: int = field(16, least=1)  # of z
    layers: int = field(3, least=1)  # of the decoder
    support: int = field(512, least=1)  # triples
    memory: int = field(10, least=0)  # common preferences of the remainer; 0 = without it
    adaptive: bool = True  # the decoder's layers are modulated by r'
    process: bool = True  # z and the attention over the support; else the decoder alone
    kl: float = field(0.1, least=0, traced=True)  # weight of the mean over z of the divergence
    dropout: float = field(0.1, least=0, below=1)  # after the decoder's layers

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'CDRNP':
        """Builds the model for factors of sizes['factor']."""
        return CDRNP(self, sizes['factor'], rngs=rngs)

    def inputs(self) -> Inputs:
        """Users by number."""
        return Inputs(users=True)

    def whole_batch(self) -> str:
        """The posterior of z is of a whole batch."""
        return 'the query set of a neural process' if self.process else ''


class CDRNP(Model):
    """See the module."""

    def __init__(self, config: Config, dim: int, *, rngs: nnx.Rngs):
        self.config, hidden = config, config.hidden
        self.preferences = Preferences(dim, hidden, rngs=rngs)
        if config.process:
            self.encoder = Layers((3 * dim + 1, hidden, hidden, hidden), rngs=rngs)
            self.latent = Layers((hidden, hidden, 2 * config.latent), rngs=rngs)
            self.keys = Layers((3 * dim, hidden, hidden), rngs=rngs)
        if config.memory:
            init = nnx.initializers.normal(0.1)
            self.memory = nnx.Param(init(rngs.params(), (config.memory, hidden), jnp.float32))
        init = nnx.initializers.lecun_normal()
        self.match = nnx.Param(init(rngs.params(), (dim, dim), jnp.float32))
        widths = [4 * dim + config.latent * config.process, *[hidden] * config.layers]
        pairs = list(itertools.pairwise(widths))
        self.decoder = nnx.List(Layers(pair, rngs=rngs) for pair in pairs)
        self.films = nnx.List(
            Layers((hidden, 2 * hidden), rngs=rngs, zero=True) for _ in pairs if config.adaptive
        )
        self.out = Layers((hidden, 1), rngs=rngs, zero=True)

    def begin(self, constants: dict) -> dict:
        """What a pass shares: the constants, and of the fixed support its state and z."""
        if not self.config.process:
            return constants
        state = self.support(self._fixed(constants), constants)
        mean, _ = self.gaussian(state['mean'])
        return constants | {'state': state, 'z': mean}

    def ratings(self, batch: dict, carried: dict) -> jax.Array:
        """float32 [B], z at the mean of its prior; `carried` of `begin`."""
        return self._decoded(batch, carried, carried.get('state'), carried.get('z'))

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """Squared error, and the divergence of the posterior of z from its prior.

        The support is drawn anew; the query set is the batch.
        """
        keys, terms, state, z = rng.keys(key, *_STREAMS), {}, None, None
        if self.config.process:
            state = self.support(self._drawn(constants, keys['support']), constants)
            own = self.encode(batch, constants)
            weights = replicated(batch['weights'])[:, None]
            total = (replicated(own) * weights).sum(0) + state['mean'] * self.config.support
            mean = total / (weights.sum() + self.config.support)
            posterior, prior = self.gaussian(mean), self.gaussian(state['mean'])
            terms['kl'] = losses.gaussian_kl(posterior, prior)
            noise = jax.random.normal(keys['latent'], posterior[0].shape)
            z = posterior[0] + jnp.exp(posterior[1] / 2) * noise
        found = self._decoded(batch, constants, state, z, keys['decode'])
        terms['mse'] = losses.weighted_mean((found - batch['ratings']) ** 2, batch['weights'])
        return terms['mse'] + self.config.kl * terms.get('kl', 0.0), (terms, carry)

    def encode(self, batch: dict, constants: dict) -> jax.Array:
        """e [B, D] of triples."""
        p, c, q = self.known(batch, constants)
        left = (batch['ratings'] - base(batch, constants))[:, None]
        return self.encoder(jnp.concatenate([p, c, q, left], axis=-1))

    def support(self, triples: dict, constants: dict) -> dict:
        """Of support triples: e, what they are found by, whose they are, and the mean of e."""
        e = self.encode(triples, constants)
        keys = self.keys(jnp.concatenate(self.known(triples, constants), axis=-1))
        return {'e': e, 'keys': keys, 'users': triples['users'], 'mean': e.mean(0)}

    def gaussian(self, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance [latent] of z after a mean of e [D]."""
        mu, raw = jnp.split(self.latent(jax.nn.relu(mean)), 2)
        return mu, 2 * jnp.log(_LEAST + (1 - _LEAST) * jax.nn.sigmoid(raw))

    def known(self, batch: dict, constants: dict) -> list[jax.Array]:
        """p_u, c_u and q_i [B, d], each of them in units of its own deviation."""
        vectors, scale = constants['vectors'], constants['scale']
        p, q = lookup(vectors['users'], batch['users']), item_factors(batch, constants)
        c = self.preferences(lookup(constants['liked'], batch['users']), vectors['items'])
        return [p * scale['users'], c * scale['source'], q * scale['items']]

    def remain(self, r: jax.Array) -> jax.Array:
        """r' [B, D], r and the common preferences that it is like."""
        if not self.config.memory:
            return r
        memory = replicated(self.memory[...])
        return r + jax.nn.softmax(r @ memory.T) @ memory

    def _attended(self, query, users, state):
        """r [B, D], attention over the support without a user's own triples."""
        scores = self.keys(query) @ state['keys'].T / state['keys'].shape[1] ** 0.5
        other = users[:, None] != state['users']
        return softmax_among(scores, other) @ state['e']

    def _decoded(self, batch, constants, state, z, key: Key = None):
        known = self.known(batch, constants)
        p, _, q = known
        r = jnp.zeros_like(p[:, :1]) * jnp.zeros(self.config.hidden)
        parts = [*known, (p @ replicated(self.match[...])) * q]
        if state is not None:
            r = self._attended(jnp.concatenate(known, axis=-1), batch['users'], state)
            parts.append(jnp.zeros_like(p[:, :1]) + z)
        r, x = self.remain(r), jnp.concatenate(parts, axis=-1)
        for n, (layer, own) in enumerate(
            zip(self.decoder, split_key(key, len(self.decoder)), strict=True)
        ):
            x = layer(x)
            if self.config.adaptive:
                gamma, beta = jnp.split(self.films[n](r), 2, axis=-1)
                x = (1 + gamma) * x + beta
            x = dropout(jax.nn.relu(x), self.config.dropout, own)
        return base(batch, constants) + self.out(x)[:, 0]

    def _fixed(self, constants):
        """The first triples of the training ratings, whose order is one of chance."""
        support = constants['support']
        count = min(self.config.support, support['users'].shape[0])
        return {name: column[:count] for name, column in support.items()}

    def _drawn(self, constants, key):
        """As many triples by chance, of all training ratings."""
        support = constants['support']
        place = jax.random.randint(key, (self.config.support,), 0, support['users'].shape[0])
        return {name: column[place] for name, column in support.items()}
