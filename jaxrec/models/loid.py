"""LoID: ratings from ids and texts, aligned, with plugins of other domains (CIKM 2024).

Of the paper (Xu et al., arXiv 2404.00236) the opening and the authors' code were read; the forms
here are our reading. Where the code has a language model, texts are frozen vectors s under a frozen
projection, t = s (W0 + merged + delta). delta = (alpha/r) A B is the domain's own adapter; merged
is the mean of the source domains' adapters after DARE. With p_u, q_i the vectors of ids

    a_u = MHA(q_i, texts of what u liked before),  a_i = MHA(p_u, parts of the text of i),

one module for both, and no dropout in it. An empty history, or no text, is a zero vector. With
`head='linear'`, the code's, the rating is mean + b_u + b_i + w . [a_u; a_i] + b; with 'factors' it
has (p_u + a_u) . (q_i + a_i) too, which without texts is a biased matrix factorisation. Training
begins at the biases: the output of MHA begins at 0.

That is the rating head. With `loss='bpr'`, the ranking head (our form), the same sum is an order:
of two ratings of a user, one above 3 and one not, the former is to be above, by -log sigmoid of the
difference (Rendle et al. 2009). What it then gives are no ratings: RMSE says nothing, GAUC does.

Ids and texts of one user, and of one item, are aligned: by InfoNCE in the batch (the paper), or by
a triplet with one other id (the code). The code sees texts of held-out rows: that is `task.leak`.
Without dropout of a_u and a_i, in products too, texts overfit: .5, that of the code, is needed.

A plugin is trained by a run whose `learns` names it, and goes on to the next by train.start_from;
other adapters rest meanwhile (with optim.weight_decay=0 bit for bit). W0 is the same in all runs.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.devices.mesh import replicated, reshape_rows
from jaxrec.errors import UserError
from jaxrec.losses import weighted_mean
from jaxrec.models.ptupcdr import base
from jaxrec.nn.adapters import Adapter, base_projection, dare
from jaxrec.nn.attention import softmax_among
from jaxrec.nn.dropout import Key, dropout
from jaxrec.nn.embeddings import item_table, lookup
from jaxrec.problem import Inputs, Model, ModelConfig

HEADS, ALIGNMENTS, MOVES = ('factors', 'linear'), ('info_nce', 'triplet'), ('both', 'texts')
_ID = 0.05  # deviation that the vectors of ids begin with
_MASKS = 1  # seed of the entries that DARE drops


@dataclasses.dataclass
class Config(ModelConfig):
    """LoID's hyper-parameters."""

    dim: int = field(64, least=1)  # of ids and projected texts
    heads: int = field(8, least=1)
    texts: bool = True  # else ids alone: with head='factors' a biased matrix factorisation
    ids: bool = True  # else texts alone: each side asks with the mean of its own
    head: str = field('factors', choices=HEADS)
    loss: str = field('mse', choices=('mse', 'bpr'))
    dropout: float = field(0.5, least=0, below=1)  # of a_u and a_i before the head
    # of |p_u|^2 + |q_i|^2 of each rating, and with 'bpr' of |a_u|^2 + |a_i|^2 too
    decay: float = field(0.05, least=0, traced=True)
    align: float = field(0.02, least=0)  # weight; the authors' .2 keeps ids from learning to rate
    alignment: str = field('info_nce', choices=ALIGNMENTS)
    align_moves: str = field('both', choices=MOVES)  # what the alignment teaches
    align_rows: int = field(256, least=2)  # of a batch, its first, that are aligned
    temperature: float = field(0.2, above=0)  # of the cosines of info_nce
    margin: float = field(1.0, above=0)  # of the triplet
    rank: int = field(8, least=1)  # of an adapter
    alpha: float = field(8.0, above=0)
    plugins: tuple[str, ...] = ()  # names of source domains whose adapters are there
    learns: str = ''  # the plugin that is trained; '' = the domain's own adapter on the merged ones
    drop: float = field(0.85, least=0, below=1)  # share of an adapter's entries that DARE drops

    def check(self) -> None:
        """Raises UserError for values that do not go together."""
        if self.dim % self.heads:
            raise UserError(f'model.dim={self.dim} must be a multiple of model.heads={self.heads}')
        if not self.texts and (not self.ids or self.head != 'factors'):
            raise UserError("model.texts=False leaves ids alone, with model.head='factors'")
        if self.align and not (self.texts and self.ids):
            raise UserError('model.align brings ids and texts together: it needs both, or is 0')
        if len(set(self.plugins)) < len(self.plugins):
            raise UserError(f'model.plugins={self.plugins} names one twice')
        if self.learns and self.learns not in self.plugins:
            raise UserError(f'model.learns={self.learns!r} is not among model.plugins')
        if self.plugins and not self.texts:
            raise UserError('model.plugins are of texts, and model.texts is False')

    def make(self, sizes: Mapping[str, int], *, rngs: nnx.Rngs) -> 'LoID':
        """Builds the model for sizes['user'], sizes['item'] and texts of sizes['text'] numbers."""
        return LoID(self, sizes, rngs=rngs)

    def inputs(self) -> Inputs:
        """Users by number, texts, and of a ranking a second rating of each user."""
        return Inputs(users=True, texts=self.texts, negatives=self.loss == 'bpr')

    def whole_batch(self) -> str:
        """Ids of a batch's rows are each other's negatives; pairs of ratings have own weights."""
        return 'model.align' if self.align else "model.loss='bpr'" * (self.loss == 'bpr')


class LoID(Model):
    """See the module."""

    def __init__(self, config: Config, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        self.config, dim = config, config.dim
        if config.ids:
            self.users = nnx.Param(item_table(_ID, dim, sizes['user'], rngs.params()))
            self.items = nnx.Param(item_table(_ID, dim, sizes['item'], rngs.params()))
        if not config.texts:
            return
        self.base_shape = sizes['text'], dim
        make = lambda: Adapter(*self.base_shape, config.rank, config.alpha, rngs=rngs)  # noqa: E731
        self.plugins = nnx.Dict({name: make() for name in config.plugins})
        if not config.learns:
            self.own = make()
        init = nnx.initializers.lecun_normal()
        square = lambda: nnx.Param(init(rngs.params(), (dim, dim), jnp.float32))  # noqa: E731
        self.query, self.key, self.value = square(), square(), square()
        self.out = nnx.Param(jnp.zeros((dim, dim)))
        self.weights = nnx.Param(init(rngs.params(), (2 * dim, 1), jnp.float32)[:, 0])
        self.bias = nnx.Param(jnp.asarray(0.0))
        if config.align and config.alignment == 'info_nce':
            self.together = square()

    def projection(self) -> jax.Array:
        """W0 + merged + delta, [d, D]."""
        kernel = base_projection(*self.base_shape)
        if self.config.learns:
            return kernel + self.plugins[self.config.learns].delta()
        if self.config.plugins:
            deltas = jnp.stack([self.plugins[name].delta() for name in self.config.plugins])
            merged = dare(deltas, self.config.drop, rng.key(_MASKS))
            kernel = kernel + jax.lax.stop_gradient(merged)
        return kernel + self.own.delta()

    def begin(self, constants: dict) -> dict:
        """What a pass shares: the constants, and of all texts what `told` makes of them."""
        if not self.config.texts:
            return constants
        kernel, texts = self.projection(), constants['texts']
        return constants | {'made': {n: self.told(texts[n], kernel) for n in ('items', 'parts')}}

    def told(self, vectors: jax.Array, kernel: jax.Array) -> dict[str, jax.Array]:
        """Of texts [.., d]: t, and the key and value of each, [.., D]."""
        t = vectors @ kernel
        key, value = (t @ replicated(x[...]) for x in (self.key, self.value))
        return {'t': t, 'key': key, 'value': value}

    def read(self, carried: dict, name: str, ids: jax.Array) -> dict[str, jax.Array]:
        """`told` of the texts with these numbers int32 [..]."""
        if 'made' in carried:
            return {n: lookup(table, ids) for n, table in carried['made'][name].items()}
        return self.told(lookup(carried['texts'][name], ids), carried['kernel'])

    def ratings(self, batch: dict, carried: dict) -> jax.Array:
        """float32 [B]; `carried` of `begin`."""
        return self._ratings(batch, carried, *self.sides(batch, carried))

    def sides(self, batch: dict, carried: dict) -> tuple[jax.Array, ...]:
        """p_u, q_i, a_u and a_i [B, D]; 0 where there are no ids or no texts."""
        p = q = a_user = a_item = jnp.zeros_like(batch['ratings'])[:, None] * jnp.zeros(
            self.config.dim
        )
        if self.config.ids:
            p, q = lookup(self.users[...], batch['users']), lookup(self.items[...], batch['items'])
        if self.config.texts:
            liked, parts = batch['before'], lookup(carried['texts']['of'], batch['items'])
            of_user, of_item = (
                self.read(carried, 'items', liked),
                self.read(carried, 'parts', parts),
            )
            ask_user, ask_item = q, p
            if not self.config.ids:
                ask_user, ask_item = mean_of(of_item['t'], parts), mean_of(of_user['t'], liked)
            a_user = self.attend(ask_user, liked, of_user)
            a_item = self.attend(ask_item, parts, of_item)
        return p, q, a_user, a_item

    def attend(self, query: jax.Array, ids: jax.Array, texts: dict) -> jax.Array:
        """MHA [B, D] of queries [B, D] over the `texts` that `read` gives of `ids` int32 [B, M].

        Where all ids are 0, none, it is 0. There are no biases.
        """
        heads = self.config.heads
        (rows, count), each = ids.shape, self.config.dim // heads
        q = reshape_rows(query @ replicated(self.query[...]), (rows, heads, each))
        key, value = (
            reshape_rows(texts[name], (rows, count, heads, each)) for name in ('key', 'value')
        )
        logits = jnp.einsum('bhd,bmhd->bhm', q, key) / each**0.5
        weights = softmax_among(logits, (ids > 0)[:, None])
        found = jnp.einsum('bhm,bmhd->bhd', weights, value)
        return reshape_rows(found, (rows, self.config.dim)) @ replicated(self.out[...])

    def loss(
        self, batch: dict, constants: dict, carry: dict, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """Squared error, or what is wrong with the order; the alignment, and the decay of ids."""
        config, weights = self.config, batch['weights']
        carried = self._of_step(batch, constants)
        sides = p, q, a_user, a_item = self.sides(batch, carried)
        if config.loss == 'mse':
            found = self._ratings(batch, carried, *sides, key)
            total = weighted_mean((found - batch['ratings']) ** 2, weights)
            terms, decayed = {'mse': total}, weighted_mean(_lengths(p, q), weights)
        else:
            total, decayed = self.disorder(batch, carried, sides, key)
            terms = {'bpr': total}
        total = total + config.decay * decayed
        if config.align:
            parts = lookup(constants['texts']['of'], batch['items'])
            terms['align'] = self.alignment(a_user, p, batch['users'], batch['before'], weights)
            terms['align'] += self.alignment(a_item, q, batch['items'], parts, weights)
            total = total + config.align * terms['align']
        return total, (terms, carry)

    def disorder(
        self, batch: dict, carried: dict, sides: tuple, key: Key
    ) -> tuple[jax.Array, jax.Array]:
        """BPR of the batch's ratings and their rivals, and the mean squared lengths of both.

        Differences of ratings have no scale of their own, so that what texts say is held short too.

        Args:
          batch: with the rivals' columns, see `data.ratings.RatingBatches`.
          carried: of `begin`.
          sides: of the batch.
          key: of the dropout; other entries are dropped of the rivals.
        """
        keys = rng.keys(key, 'own', 'rival')
        rival = {n[6:]: x for n, x in batch.items() if n[:6] == 'rival_'}
        rival['users'] = batch['users']
        others = self.sides(rival, carried)
        own = self._ratings(batch, carried, *sides, keys['own'])
        other = self._ratings(rival, carried, *others, keys['rival'])
        wanted = jnp.where(batch['ratings'] > rival['ratings'], 1, -1)
        values = losses.bpr(wanted * own, (wanted * other)[:, None])
        lengths = (_lengths(*sides) + _lengths(*others)) / 2
        return tuple(weighted_mean(x, rival['weights']) for x in (values, lengths))

    def alignment(
        self, text: jax.Array, own: jax.Array, ids: jax.Array, told: jax.Array, weights: jax.Array
    ) -> jax.Array:
        """How far texts [B, D] are from ids' vectors `own` [B, D]; the first rows alone.

        Rows without a text do not count, and rows of the same id are no negatives. Nor do rows of
        zero vectors under InfoNCE, as all are at the start: they have no direction, and the slope
        of their unit vectors, 1e6, would stay in Adam's second moments.
        """
        config, rows = self.config, min(self.config.align_rows, len(ids))
        text, own, ids, counted = (
            replicated(x)[:rows] for x in (text, own, ids, weights * (told > 0).any(1))
        )
        if config.align_moves == 'texts':
            own = jax.lax.stop_gradient(own)
        if config.alignment == 'triplet':
            values = losses.triplet(text, own, jnp.roll(own, 1, axis=0), config.margin)
            return weighted_mean(values, counted * (ids != jnp.roll(ids, 1)))
        together, counted = replicated(self.together[...]), counted * (text != 0).any(1)
        values = losses.info_nce(
            text @ together,
            own @ together,
            temperature=config.temperature,
            cosine=True,
            hidden=(ids[:, None] == ids) | (counted == 0),
        )
        return weighted_mean(values.mean(0), counted)

    def _of_step(self, batch, constants):
        """What a step reads: of all texts where it reads more than there are, else of its own."""
        if self.config.texts:
            texts, (rows, most) = constants['texts'], batch['before'].shape
            wanted = rows * (most + texts['of'].shape[1])
            if wanted < len(texts['items']) + len(texts['parts']):
                return constants | {'kernel': self.projection()}
        return self.begin(constants)

    def _ratings(self, batch, carried, p, q, a_user, a_item, key: Key = None):
        found = base(batch, carried)
        if self.config.texts:
            both = dropout(jnp.concatenate([a_user, a_item], -1), self.config.dropout, key)
            found = found + both @ replicated(self.weights[...]) + self.bias[...]
            a_user, a_item = jnp.split(both, 2, axis=-1)
        if self.config.head == 'factors':
            found = found + ((p + a_user) * (q + a_item)).sum(-1)
        return found


def _lengths(*vectors):
    """[B], the squared lengths of vectors [B, D], added."""
    return sum((x * x).sum(-1) for x in vectors)


def mean_of(vectors: jax.Array, ids: jax.Array) -> jax.Array:
    """[B, D], the mean of those of vectors [B, M, D] whose ids [B, M] are not 0; 0 of none."""
    real = ids > 0
    return (vectors * real[..., None]).sum(1) / jnp.maximum(real.sum(1), 1)[:, None]
