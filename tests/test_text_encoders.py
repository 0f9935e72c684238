"""Texts to vectors: against slow references, other packages, and what people write."""

import sys

import numpy as np
import pytest

from jaxrec.config import Texts
from jaxrec.data import item_texts, text_encoders
from jaxrec.data.catalogue import Catalogue
from jaxrec.errors import UserError

WORDS = ('red', 'blue', 'lamp', 'chair', 'shoe', 'cap', 'game', 'box', 'café', '映', 'большой')


def texts_of(count=60, seed=0):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(count)]


def stored(texts):
    return np.array([text.encode() for text in texts])


def items_of(texts):
    return Catalogue(np.arange(1, len(texts) + 1), 1, '', stored(texts), name='shop')


def slow_tf_idf(texts):
    """float64 [n, V]: a loop over texts and words."""
    words = sorted({word for text in texts for word in text.split()}, key=str.encode)
    out = np.zeros((len(texts), len(words)))
    for row, text in zip(out, texts, strict=True):
        for n, word in enumerate(words):
            holding = sum(word in other.split() for other in texts)
            row[n] = text.split().count(word) * (np.log((1 + len(texts)) / (1 + holding)) + 1)
        row /= np.sqrt((row * row).sum()) or 1
    return out


def test_tf_idf_and_its_directions():
    texts = texts_of()
    words, frequency = text_encoders.vocabulary(stored(texts))
    number = {word.decode(): n for n, word in enumerate(words.tolist())}
    weights = text_encoders.inverse_frequency(frequency, len(texts))
    made = text_encoders.normed(text_encoders.count(texts, number), weights)
    slow = slow_tf_idf(texts)
    np.testing.assert_allclose(made.toarray(), slow, rtol=1e-5, atol=1e-7)
    # All directions: products of vectors are those of TF-IDF; fewer: the best approximation.
    encoder = text_encoders.fit(Texts('tfidf', 16, centred=False), stored(texts))
    found = encoder(texts).astype(np.float64)
    np.testing.assert_allclose(found @ found.T, slow @ slow.T, atol=1e-5)
    best = np.linalg.svd(slow, full_matrices=False)
    encoder = text_encoders.fit(Texts('tfidf', 4, centred=False), stored(texts))
    kept = (best[0][:, :4] * best[1][:4]) @ best[2][:4]
    np.testing.assert_allclose(encoder.pooled(texts) @ encoder.table.T, kept, atol=1e-5)


def test_large_decompositions_are_approximated():
    """By random projections: as good as the exact one where the spectrum falls."""
    rng = np.random.default_rng(0)
    scale = 0.7 ** np.arange(90)
    matrix = (rng.normal(size=(300, 90)) * scale) @ rng.normal(size=(90, 200))
    right = text_encoders.leading(matrix, 8)
    np.testing.assert_allclose(right @ right.T, np.eye(8), atol=1e-9)
    exact = np.linalg.svd(matrix)[2][:8]
    np.testing.assert_allclose(np.abs((right * exact).sum(1)), 1, atol=1e-6)


def test_as_scikit_learn_has_it():
    text = pytest.importorskip('sklearn.feature_extraction.text')
    texts = texts_of()
    judge = text.TfidfVectorizer(analyzer=text_encoders.tokens)
    expected = judge.fit_transform(texts).toarray()
    encoder = text_encoders.fit(Texts('tfidf', 16, centred=False), stored(texts))
    found = encoder(texts)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('Nail-Lacquer, 12 ml (NEW!)', ['nail', 'lacquer', '12', 'ml', 'new']),
        ('Straße CAFÉ ｆｕｌｌ', ['strasse', 'café', 'full']),
        ('東京abcタワー', ['東', '京', 'abc', 'タ', 'ワ', 'ー']),
        ('हिन्दी большой_мир', ['हिन्दी', 'большой', 'мир']),
        ('😀 ... !!', []),
        (b'\xff\xfe broken', ['broken']),
        ('', []),
    ],
)
def test_words(text, expected):
    assert text_encoders.tokens(text) == expected


@pytest.mark.parametrize('kind', ['tfidf', 'skipgram'])
def test_vectors_are_unit_and_no_text_is_zero(kind):
    texts = [*texts_of(), '', '...', 'unheardof']
    encoder = text_encoders.fit(Texts(kind, 8), stored(texts[:-1]))
    found = encoder(texts)
    assert found.dtype == np.float32 and found.shape == (63, 8) and np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found[:60], axis=1), 1, rtol=1e-5)
    assert not found[60:].any()  # empty, without words, without a known word
    centred = encoder.pooled(texts)[:60] - encoder.centre
    np.testing.assert_allclose(centred.mean(0), 0, atol=1e-6)
    nothing = text_encoders.fit(Texts(kind, 8), stored(['', '!']))
    assert not nothing(['', 'red']).any()


def test_skip_gram_pools_by_the_mean_and_learns_who_stands_together():
    """Two kinds of texts that share no word: words of one kind come to lie together."""
    rng = np.random.default_rng(0)
    kinds = [WORDS[:4], WORDS[4:8]]
    texts = [' '.join(rng.choice(kinds[n % 2], 5)) for n in range(200)]
    encoder = text_encoders.fit(Texts('skipgram', 8), stored(texts))
    known = {word.decode(): row for word, row in zip(encoder.words, encoder.table, strict=True)}
    mean = np.mean([known['red'], known['red'], known['lamp']], 0)
    np.testing.assert_allclose(encoder.pooled(['red lamp red unheardof'])[0], mean, rtol=1e-5)
    found = encoder(list(WORDS[:8]))
    cosines = found @ found.T
    inside = np.concatenate([cosines[:4, :4][~np.eye(4, dtype=bool)], cosines[4:, 4:].ravel()])
    assert inside.min() > cosines[:4, 4:].max() + 0.5


def test_stored_beside_the_data(tmp_path, monkeypatch):
    """Once; another text, setting or damage makes them anew."""
    made = []
    fit = text_encoders.fit
    monkeypatch.setattr(text_encoders, 'fit', lambda *args: made.append(1) or fit(*args))
    items, settings = items_of(texts_of()), Texts('tfidf', 8)
    first = item_texts.of_items(items, settings, str(tmp_path), print)
    again = item_texts.of_items(items, settings, str(tmp_path), print)
    assert len(made) == 1 and isinstance(again.vectors, np.memmap)
    np.testing.assert_array_equal(first.vectors, again.vectors)
    first.vectors = np.array(first.vectors)  # the file is damaged below
    assert not first.vectors[0].any() and first.digest == again.digest
    np.testing.assert_array_equal(again.encoder(texts_of()), first.vectors[1:])
    (folder,) = (tmp_path / 'texts').glob('[0-9a-f]*')
    content = (folder / 'vectors.npy').read_bytes()
    (folder / 'vectors.npy').write_bytes(content[:-1] + b'\x01')
    repaired = item_texts.of_items(items, settings, str(tmp_path), print)
    np.testing.assert_array_equal(repaired.vectors, first.vectors)
    assert len(made) == 2
    others = [items_of([*texts_of()[:-1], 'other']), items]
    for other, how in zip(others, [settings, Texts('tfidf', 9)], strict=True):
        assert item_texts.of_items(other, how, str(tmp_path), print).digest != first.digest
    assert len(made) == 4
    nowhere = item_texts.of_items(items, settings, '', print)
    np.testing.assert_array_equal(nowhere.vectors, first.vectors)


def test_an_earlier_encoder_keeps_its_space(tmp_path):
    """New texts under the words and directions of the run before."""
    items = items_of(texts_of())
    first = item_texts.of_items(items, Texts('tfidf', 8), '', print)
    columns = first.columns()
    encoder = item_texts.encoder_of(columns)
    more = items_of([*texts_of(), 'red lamp new'])
    found = item_texts.of_items(more, Texts('tfidf', 8), str(tmp_path), print, encoder)
    np.testing.assert_array_equal(found.vectors[:61], first.vectors)
    np.testing.assert_array_equal(found.vectors[61], first.encoder(['red lamp new'])[0])
    assert found.digest != item_texts.of_items(more, Texts('tfidf', 8), '', print).digest


def test_no_texts_at_all():
    for items in (Catalogue(np.arange(3), 1, ''), items_of(['', ''])):
        with pytest.raises(UserError, match='has no texts of items.*data.texts'):
            item_texts.of_items(items, Texts('tfidf'), '', print)


def test_many_texts_tell_how_far_they_are(monkeypatch):
    monkeypatch.setattr(text_encoders, '_AT_ONCE', 16)
    monkeypatch.setattr(text_encoders, '_TOLD', 32)
    monkeypatch.setattr(text_encoders, '_FITTED', 40)
    monkeypatch.setattr(text_encoders, 'WORDS', 7)
    said = []
    found = item_texts.of_items(items_of(texts_of()), Texts('tfidf', 4), '', said.append)
    assert 'words of 32 of 60 texts' in said and 'vectors of 60 of 60 texts' in said
    assert len(found.encoder.words) == 7


@pytest.mark.parametrize(
    ('texts', 'centred'), [(['red lamp'] * 9, True), (['!!!', '???'] * 5, False)]
)
def test_texts_that_say_nothing_are_refused(texts, centred, tmp_path):
    """Alike, or without words: each time, also when their vectors are stored."""
    for folder in ('', str(tmp_path), str(tmp_path)):
        with pytest.raises(UserError, match='no text of shop has a vector by .tfidf') as error:
            item_texts.of_items(items_of(texts), Texts('tfidf', 4, centred=centred), folder, print)
        assert '\n' not in str(error.value)


def test_items_without_a_vector_are_told_each_time(tmp_path):
    for _ in range(2):
        said = []
        given = items_of(['red lamp', '!!!', 'blue lamp'])
        item_texts.of_items(given, Texts('tfidf', 2), str(tmp_path), said.append)
        assert 'note: 1 of 3 items have no text with a vector' in said


@pytest.mark.slow
def test_a_million_texts_in_little_memory(tmp_path):
    """Above the vectors themselves, under a gigabyte."""
    import resource

    rng = np.random.default_rng(0)
    words = np.array([f'w{n}' for n in range(200_000)])
    chosen = words[(rng.pareto(1.0, (1_000_000, 6)) * 20).astype(int) % len(words)]
    items = items_of([' '.join(row) for row in chosen])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = []
    found = item_texts.of_items(items, Texts('tfidf', 64), str(tmp_path), said.append)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert found.vectors.shape == (1_000_001, 64) and len(said) > 10
    assert (after - before) * 1024 < 3 * found.vectors.nbytes + 2**30


def test_a_missing_package_is_one_line(monkeypatch):
    text_encoders._package.cache_clear()
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(UserError, match=r"pip install 'jaxrec\[text\]'") as error:
        text_encoders.fit(Texts('wordllama', 64), stored(['red']))
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='dim=100: the vectors of wordllama have 64, 128, 256'):
        text_encoders.fit(Texts('wordllama', 100), stored(['red']))


def test_wordllama_pools_as_its_package(monkeypatch):
    """No network: its own files. A text without tokens is a zero vector, which theirs is not."""
    wordllama = pytest.importorskip('wordllama')
    import pathlib

    text_encoders._package.cache_clear()
    folder = pathlib.Path(wordllama.__file__).parent
    judge = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    texts = ['red lamp', 'nail lacquer simmer and shimmer', 'большой 映画', 'a']
    encoder = text_encoders.fit(Texts('wordllama', 256, centred=False), stored(texts))
    theirs = judge.embed(texts, norm=True)
    np.testing.assert_allclose(encoder(texts), theirs, atol=1e-6)
    found = encoder(['', *texts])
    assert not found[0].any() and np.isfinite(found).all()
    short = text_encoders.fit(Texts('wordllama', 64, centred=False), stored(texts))
    np.testing.assert_allclose(
        short.pooled(texts), encoder.pooled(texts)[:, :64], rtol=1e-5, atol=1e-6
    )
