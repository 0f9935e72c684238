"""Texts to vectors, on the host: TF-IDF and SVD, skip-gram, or token vectors out of a package.

Every encoder is a weighted sum of word vectors, without order; so texts that come later, of new
items or of a query, have vectors in the same space. A text without any known word is a zero vector.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxrec import rng
from jaxrec.config import Texts
from jaxrec.errors import UserError

VERSION = 1  # of what the encoders make of a text
WORDS = 50_000  # most words of a vocabulary, those of most texts
DIMS = (64, 128, 256)  # of wordllama, of which the first columns may be taken
NO_PACKAGE = (
    "task.texts.encoder='wordllama' needs packages that are not installed: "
    "pip install 'jaxrec[text]', or take 'tfidf'"
)
_AT_ONCE = 1 << 14  # texts
_TOLD = 1 << 17  # more texts than this are told of as they are worked through
_FITTED = 1 << 18  # texts, evenly spread, that a decomposition is made of
_COUNTED = 1 << 21  # words that are counted at once
_WINDOW, _NEGATIVES, _EPOCHS, _PAIRS, _MOST_STEPS = 5, 5, 20, 1024, 40_000  # of skip-gram
_RATE, _POWER = 0.1, 0.75
_OVERSAMPLED, _ITERATIONS = 32, 4  # of the singular value decomposition
# Chinese and Japanese do not part words: every sign is one. Marks that join to a letter stay there.
_SIGN = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff'
_MARK = '\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0e7f'
_WORD = re.compile(f'[{_SIGN}]|(?:(?![{_SIGN}])[^\\W_]|[{_MARK}])+')


@dataclasses.dataclass
class Encoder:
    """What makes vectors of texts; its arrays are all that is kept of it.

    Attributes:
      kind: one of `config.ENCODERS`.
      words: utf-8 bytes [V], ascending; empty with wordllama, which brings its own.
      weights: float32 [V] of the words: inverse document frequencies, or 1.
      table: float32 [V, d] vectors of the words.
      centre: float32 [d], taken away from vectors before they are made unit.
    """

    kind: str
    words: np.ndarray
    weights: np.ndarray
    table: np.ndarray
    centre: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return found | {'kind': np.array([self.kind.encode()])}

    def __call__(self, texts: Sequence[str | bytes], say: Callable | None = None) -> np.ndarray:
        """float32 [n, d] of n texts: unit vectors, zero where no word is known."""
        out = np.zeros((len(texts), len(self.centre)), np.float32)
        for some in _blocks(len(texts), say):
            found = self.pooled(texts[some])
            there = found.any(1, keepdims=True)
            out[some] = _unit(np.where(there, found - self.centre, 0))
        return out

    def pooled(self, texts: Sequence[str | bytes]) -> np.ndarray:
        """float32 [n, d] before they are centred and made unit."""
        if self.kind == 'wordllama':
            return _pooled_tokens(texts, len(self.centre))
        counted = count(texts, self._number)
        if self.kind == 'tfidf':
            counted = normed(counted, self.weights)
        else:
            total = np.maximum(np.asarray(counted.sum(1), np.float32), 1)
            counted = scipy.sparse.diags_array(1 / total.reshape(-1)) @ counted
        return np.asarray(counted @ self.table, np.float32)

    @functools.cached_property
    def _number(self):
        return {word.decode(): n for n, word in enumerate(self.words.tolist())}


def fit(settings: Texts, texts: np.ndarray, say: Callable = print) -> Encoder:
    """The encoder of a catalogue's texts.

    Args:
      settings: which.
      texts: utf-8 bytes [n].
      say: called with lines for people where it takes a while.

    Raises:
      UserError: a package is missing, or a dimension cannot be.
    """
    dim, none = settings.dim, np.zeros(0, np.float32)
    made = Encoder(settings.encoder, none.astype('S1'), none, none.reshape(0, dim), np.zeros(dim))
    if settings.encoder == 'wordllama':
        say(f'wordllama: weights of sha256 {_package(dim).sha256[:16]}')
    else:
        words, frequency = vocabulary(texts, say)
        made.words, made.weights = words, np.ones(len(words), np.float32)
        if settings.encoder == 'tfidf':
            made.weights = inverse_frequency(frequency, len(texts))
            made.table = _directions(made, texts, dim)
        else:
            made.table = skip_gram(list(made._number), _documents(texts, made._number), dim, say)
    made.centre = np.zeros(dim, np.float32)
    if settings.centred:
        made.centre = _mean(made, texts)
    return made


def tokens(text: str | bytes) -> list[str]:
    """Words of a text: runs of letters and digits in lower case, single signs of Chinese."""
    text = text.decode(errors='replace') if isinstance(text, bytes) else text
    return _WORD.findall(unicodedata.normalize('NFKC', text).casefold())


def vocabulary(texts: np.ndarray, say: Callable | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(utf-8 bytes [V] ascending, int64 [V]): the words of most texts, in how many each is."""
    found = collections.Counter()
    for some in _blocks(len(texts), say, 'words of'):
        for text in texts[some]:
            found.update(set(tokens(text)))
        if len(found) > _COUNTED:
            found = collections.Counter(dict(found.most_common(_COUNTED // 2)))
    ranked = sorted(found.items(), key=lambda one: (-one[1], one[0]))[:WORDS]
    ranked = sorted((word.encode(), frequency) for word, frequency in ranked)
    words = np.array([word for word, _ in ranked] or [], 'S' if ranked else 'S1')
    return words, np.array([frequency for _, frequency in ranked], np.int64)


def count(texts: Sequence[str | bytes], number: dict[str, int]) -> scipy.sparse.csr_array:
    """float32 [n, V], how often each word is in each text."""
    rows = [[number[word] for word in tokens(text) if word in number] for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    flat = np.fromiter((n for row in rows for n in row), np.int64, starts[-1])
    shape = (len(rows), len(number))
    made = scipy.sparse.csr_array((np.ones(len(flat), np.float32), flat, starts), shape)
    made.sum_duplicates()
    return made


def inverse_frequency(frequency: np.ndarray, texts: int) -> np.ndarray:
    """float32 [V]: ln((1 + n) / (1 + df)) + 1, smoothed as scikit-learn does."""
    return (np.log((1 + texts) / (1 + frequency)) + 1).astype(np.float32)


def normed(counted: scipy.sparse.csr_array, weights: np.ndarray) -> scipy.sparse.csr_array:
    """Counts times weights, rows of length 1; rows without words stay 0."""
    weighted = counted.copy()
    weighted.data *= weights[weighted.indices]
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1))).reshape(-1)
    scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    return scipy.sparse.csr_array(scipy.sparse.diags_array(scale) @ weighted)


def _directions(encoder: Encoder, texts: np.ndarray, dim: int) -> np.ndarray:
    """float32 [V, dim] right singular vectors, the largest first, of the texts' TF-IDF."""
    chosen = np.arange(len(texts))
    if len(texts) > _FITTED:
        chosen = np.arange(_FITTED) * len(texts) // _FITTED
    parts = [
        normed(count(texts[chosen[some]], encoder._number), encoder.weights)
        for some in _blocks(len(chosen))
    ]
    out = np.zeros((len(encoder.words), dim), np.float32)
    if not len(encoder.words):
        return out
    right = leading(scipy.sparse.vstack(parts), dim)
    largest = np.take_along_axis(right, np.abs(right).argmax(1)[:, None], 1)
    out[:, : len(right)] = (right * np.sign(largest)).T  # the sign is chance else
    return out


def leading(matrix: scipy.sparse.csr_array, most: int) -> np.ndarray:
    """float64 [k, V], the leading right singular vectors; k = most, or the smaller side if less.

    By random projections and power iterations (Halko et al. 2011).
    """
    matrix = scipy.sparse.csr_array(matrix, dtype=np.float64)
    if min(matrix.shape) <= most + _OVERSAMPLED:
        return np.linalg.svd(matrix.toarray(), full_matrices=False)[2][:most]
    basis = np.random.default_rng(0).normal(size=(matrix.shape[1], most + _OVERSAMPLED))
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(matrix.T @ (matrix @ basis))[0]
    return (basis @ np.linalg.svd(matrix @ basis, full_matrices=False)[2].T)[:, :most].T


def _documents(texts, number):
    """(numbers of all known words one after the other int32, the text of each int32)."""
    flat, owner = [], []
    for some in _blocks(len(texts)):
        for n, text in enumerate(texts[some], some.start):
            known = [number[word] for word in tokens(text) if word in number]
            flat += known
            owner += [n] * len(known)
    return np.array(flat, np.int32), np.array(owner, np.int32)


def skip_gram(
    words: Sequence[str], documents: tuple[np.ndarray, np.ndarray], dim: int, say: Callable = print
) -> np.ndarray:
    """float32 [V, dim]: skip-gram with negative sampling (Mikolov et al. 2013) on the texts.

    A step takes pairs of words up to 5 places apart in a text, 5 negatives each by frequency to the
    power of .75, under rowwise Adagrad; 20 passes over the words, 40,000 steps at most.
    """
    flat, owner = documents
    key = rng.key(0)
    table = jax.random.uniform(key, (max(len(words), 1), dim), minval=-0.5, maxval=0.5) / dim
    if len(flat) < 2:
        return np.asarray(table)[: len(words)]
    share = np.bincount(flat, minlength=len(words)) ** _POWER
    cumulative = jnp.asarray(np.cumsum(share / share.sum()), jnp.float32)
    steps = min(-(-len(flat) * _EPOCHS * 2 // _PAIRS), _MOST_STEPS)
    if len(flat) > _TOLD:
        say(f'skip-gram: {steps:,} steps over {len(flat):,} words')
    return np.asarray(_learnt(jnp.asarray(flat), jnp.asarray(owner), cumulative, table, key, steps))


@functools.partial(jax.jit, static_argnames='steps')
def _learnt(flat, owner, cumulative, table, key, steps):
    def loss(rows, real):
        own, other, negatives = rows
        positive = jax.nn.softplus(-(own * other).sum(-1))
        negative = jax.nn.softplus(jnp.einsum('bd,bnd->bn', own, negatives)).sum(-1)
        return ((positive + negative) * real).sum()

    def step(n, state):
        inner, outer, of_inner, of_outer = state
        at, away, drawn = jax.random.split(jax.random.fold_in(key, n), 3)
        at = jax.random.randint(at, (_PAIRS,), 0, len(flat))
        away = jax.random.randint(away, (_PAIRS,), 1, 2 * _WINDOW + 1)
        there = at + jnp.where(away > _WINDOW, _WINDOW - away, away)
        inside = (there >= 0) & (there < len(flat))
        there = jnp.clip(there, 0, len(flat) - 1)
        own, other = flat[at], flat[there]
        drawn = jnp.searchsorted(cumulative, jax.random.uniform(drawn, (_PAIRS, _NEGATIVES)))
        drawn = jnp.minimum(drawn, len(cumulative) - 1)
        real = inside & (owner[at] == owner[there])
        rows = inner[own], outer[other], outer[drawn]
        d_own, d_other, d_drawn = jax.grad(loss)(rows, real)
        inner, of_inner = _adagrad(inner, of_inner, own, d_own)
        ids = jnp.concatenate([other, drawn.reshape(-1)])
        d_ids = jnp.concatenate([d_other, d_drawn.reshape(-1, d_drawn.shape[-1])])
        outer, of_outer = _adagrad(outer, of_outer, ids, d_ids)
        return inner, outer, of_inner, of_outer

    none = jnp.zeros(len(table))
    return jax.lax.fori_loop(0, steps, step, (table, jnp.zeros_like(table), none, none))[0]


def _adagrad(table, squares, ids, gradient):
    total = jnp.zeros_like(table).at[ids].add(gradient)
    squares = squares + (total * total).mean(1)
    return table - _RATE * total / jnp.sqrt(squares + 1e-12)[:, None], squares


@dataclasses.dataclass
class _Package:
    """Token vectors float32 [T, d] and the tokenizer of an installed package."""

    table: np.ndarray
    tokenizer: object
    sha256: str


@functools.cache
def _package(dim: int) -> _Package:
    """wordllama's, of its two files: its own loader would go to the network.

    Raises:
      UserError: not installed, not as known, or another dimension.
    """
    if dim not in DIMS:
        sizes = ', '.join(map(str, DIMS))
        raise UserError(f'task.texts.dim={dim}: the vectors of wordllama have {sizes}')
    try:
        import safetensors.numpy
        import tokenizers
    except ImportError as e:
        raise UserError(NO_PACKAGE) from e
    spec = importlib.util.find_spec('wordllama')
    if spec is None or not spec.submodule_search_locations:
        raise UserError(NO_PACKAGE)
    folder = pathlib.Path(spec.submodule_search_locations[0])
    weights = folder / 'weights' / 'l2_supercat_256.safetensors'
    tokenizer = folder / 'tokenizers' / 'l2_supercat_tokenizer_config.json'
    for file in (weights, tokenizer):
        if not file.is_file():
            raise UserError(f'the installed wordllama has no {file}: install version 0.4')
    content = weights.read_bytes()
    table = safetensors.numpy.load(content)['embedding.weight'][:, :dim].astype(np.float32)
    reader = tokenizers.Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    reader.no_truncation()
    return _Package(table, reader, hashlib.sha256(content).hexdigest())


def _pooled_tokens(texts, dim):
    """float32 [n, dim], the mean of the tokens' vectors."""
    package = _package(dim)
    text = [one.decode(errors='replace') if isinstance(one, bytes) else str(one) for one in texts]
    found = package.tokenizer.encode_batch(text, add_special_tokens=False)
    out = np.zeros((len(text), dim), np.float32)
    for row, one in zip(out, found, strict=True):
        if one.ids:
            ids = np.minimum(one.ids, len(package.table) - 1)
            row[:] = package.table[ids].sum(0) / np.float32(len(ids))
    return out


def _mean(encoder, texts):
    """float32 [d], the mean of the vectors of texts that have words."""
    total, there = np.zeros(len(encoder.centre)), 0
    for some in _blocks(len(texts)):
        found = encoder.pooled(texts[some])
        total += found.sum(0, dtype=np.float64)
        there += int(found.any(1).sum())
    return (total / max(there, 1)).astype(np.float32)


def _unit(x):
    length = np.sqrt((x * x).sum(1, keepdims=True))
    return np.divide(x, length, out=np.zeros_like(x), where=length > 1e-12)


def _blocks(total: int, say: Callable | None = None, what: str = 'vectors of') -> Iterator[slice]:
    """Slices of `total` texts; of many, a line now and then."""
    for start in range(0, total, _AT_ONCE):
        yield slice(start, min(start + _AT_ONCE, total))
        done = min(start + _AT_ONCE, total)
        if say and total > _TOLD and (done % _TOLD == 0 or done == total):
            say(f'{what} {done:,} of {total:,} texts')


def digest(settings: Texts, texts: np.ndarray, encoder: Encoder | None = None) -> str:
    """Hash of all that the vectors of these texts follow from, see `item_texts.of_items`."""
    found = hashlib.sha256(repr((VERSION, dataclasses.astuple(settings), len(texts))).encode())
    if settings.encoder == 'wordllama':
        found.update(_package(settings.dim).sha256.encode())
    if encoder is not None:
        for column in encoder.columns().values():
            found.update(np.ascontiguousarray(column).tobytes())
    for some in _blocks(len(texts)):
        for text in texts[some]:
            found.update(len(text).to_bytes(4, 'little') + text)
    return found.hexdigest()
