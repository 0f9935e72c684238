"""Self-supervision of items from two maskings of their features (Yao et al., CIKM 2021).

Two views of an item, each with some of its features masked, are to have the same vector among those
of other items (arXiv:2007.12865). The items are drawn uniformly from the catalogue and not from the
events, which the paper calls critical: it is the rare ones that gain.

  complementary   a random half of the columns is masked in one view, the other half in the other:
                  the paper's RFM
  independent     two random halves, of columns and id together: what LibRecommender calls RFM
  correlated      the paper's CFM: a random column, the seed, is masked with the half that it has
                  the most mutual information with; the other view masks the rest

The paper does not say what an id is. Here it is no column (it knows every feature, and would always
be among the correlated ones): a coin says in which of both views it is masked. The masks are those
of a step, the same for all its items. What is masked is missing: a zero vector.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import losses, rng
from jaxrec.config import field
from jaxrec.nn.dropout import hashed

MASKS = ('complementary', 'independent', 'correlated')


@dataclasses.dataclass
class ItemViews:
    """Settings of the term."""

    weight: float = field(0.0, least=0, traced=True)  # alpha, of the term in the loss; 0 = none
    masks: str = field('complementary', choices=MASKS)
    # how often a value of a feature of several is left out, in each view by itself
    value_dropout: float = field(0.1, least=0, below=1)
    temperature: float = field(0.1, above=0, traced=True)
    items: int = field(1024, least=2)  # of a step, or the whole catalogue where it has fewer


def draw(count: int, num_items: int, key: jax.Array) -> jax.Array:
    """int32 [min(count, num_items)] different items of 1..num_items, each equally likely.

    One of each of as many parts of the catalogue, which begin anywhere.
    """
    edges = np.arange(min(count, num_items) + 1) * num_items // min(count, num_items)
    turn, place = jax.random.split(key)
    size = jnp.asarray(np.diff(edges))
    inside = jnp.floor(jax.random.uniform(place, size.shape) * size).astype(jnp.int32)
    first = jnp.asarray(edges[:-1], jnp.int32) + jnp.minimum(inside, size - 1)
    return (1 + (first + jax.random.randint(turn, (), 0, num_items)) % num_items).astype(jnp.int32)


def masked(
    masks: str, columns: int, has_id: bool, information: jax.Array | None, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """bool [2, columns] and bool [2], which columns and whether the id are masked in both views.

    Args:
      masks: one of MASKS.
      columns: k.
      has_id: whether items have an id too.
      information: float32 [k, k], of `data.information`; for 'correlated'.
      key: of the draw.
    """
    keys = rng.keys(key, 'first', 'second', 'id')
    coin = jax.random.bernoulli(keys['id'])
    of_id = jnp.stack([coin, ~coin]) & has_id
    if masks == 'independent':
        slots = columns + has_id
        both = jnp.stack(
            [jax.random.permutation(keys[name], slots) < slots // 2 for name in ('first', 'second')]
        )
        return both[:, :columns], both[:, columns:].any(1)
    if masks == 'complementary':
        first = jax.random.permutation(keys['first'], columns) < columns // 2
    else:
        seed = jax.random.randint(keys['first'], (), 0, columns)
        place = jnp.arange(columns)
        others = jnp.where(place == seed, jnp.inf, information[seed])  # the seed comes first
        rank = jnp.argsort(jnp.argsort(-others))
        first = rank < 1 + columns // 2
    return jnp.stack([first, ~first]), of_id


def left_out(codes: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Sets of codes [n, T] without some of their values, each gone with probability `rate`."""
    if not rate:
        return codes
    number = jnp.arange(codes.size, dtype=jnp.uint32).reshape(codes.shape)
    limit = jnp.uint32(int(rate * 2**32))
    return jnp.where(hashed(key, number) >= limit, codes, 0)


def term(first: jax.Array, second: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """-log e^s(z_i, z'_i) / sum_j e^s(z_i, z'_j), s a cosine over the temperature: the mean.

    Args:
      first, second: [N, D] vectors of the views of N different items.
      temperature: above 0.
    """
    own, everyone = jnp.arange(len(first), dtype=jnp.int32), jnp.ones(len(first), bool)
    weights = jnp.ones(len(first), first.dtype)
    return losses.info_nce_among(first, second, own, everyone, weights, temperature=temperature)
