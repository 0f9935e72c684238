"""Census-Income as rows, from a few made-up lines and, by hand, from the real file."""

import gzip
import hashlib

import numpy as np
import pytest
from real_data import real_data

from jaxrec import datasets
from jaxrec.config import Data
from jaxrec.data.rows import Rows
from jaxrec.datasets import census_rows
from jaxrec.datasets.census_rows import CATEGORIES, COLUMNS, FILE, NAME, NUMBERS
from jaxrec.errors import UserError


def line(**values):
    """A row as published; what is not named is '?' or 0."""
    cells = {name: '0' if name in NUMBERS else '?' for name in COLUMNS} | values
    return ', '.join(cells[name] for name in COLUMNS)


PEOPLE = [
    line(age='38', education='Masters degree(MA MS MEng MEd MSW MBA)', income='50000+.'),
    line(education='High school graduate', marital_stat='Never married', income='- 50000.'),
    line(citizenship='Foreign born- Not a citizen of U S ', income='- 50000.', sex='Female'),
    line(education='Associates degree-occup /vocational', income='- 50000.', sex='Male'),
    line(education='Some college but no degree', income='50000+.', capital_gains='99999'),
    line(income='50000+.'),
]


@pytest.fixture
def source(tmp_path, monkeypatch):
    text = ('\n'.join(PEOPLE) + '\n').encode()
    (tmp_path / f'{FILE}.gz').write_bytes(gzip.compress(text))
    monkeypatch.setattr(census_rows, 'SHA256', hashlib.sha256(text).hexdigest())
    return tmp_path


def test_rows(source):
    config = Data(dataset=NAME, source=str(source), data_dir=str(source / 'data'))
    rows, meta = datasets.load(config, say=lambda line: None, kind=Rows)
    assert len(rows) == rows.num_users == 6 and rows.num_items == 1
    assert rows.features['fifth'].tolist() == [0, 1, 2, 3, 4, 0]
    assert rows.labels['income'].tolist() == [1, 0, 0, 0, 1, 1]
    assert rows.labels['never_married'].tolist() == [0, 1, 0, 0, 0, 0]
    assert rows.labels['education'].tolist() == [1, 0, 0, 1, 0, 0]
    assert rows.features['age'].tolist() == [38, 0, 0, 0, 0, 0]
    assert rows.features['capital_gains'][4] == 99999
    assert rows.features['sex'].tolist() == [0, 0, 1, 2, 0, 0]  # '?' is one of them
    assert rows.features['citizenship'].tolist() == [0, 0, 1, 0, 0, 0]
    assert rows.features.keys() == {'fifth', *CATEGORIES, *NUMBERS}
    assert len(CATEGORIES) == 31 and len(NUMBERS) == 7
    assert not {'education', 'marital_stat', 'instance_weight', 'income'} & rows.features.keys()
    assert meta['statistics']['labels']['income'] == 0.5


def test_another_file_or_none(source):
    for path, words in (
        ('', f'data.source=FOLDER with {FILE}'),
        (str(source), 'not the published'),
    ):
        (source / f'{FILE}.gz').write_bytes(b'other')
        config = Data(dataset=NAME, source=path, data_dir=str(source / 'data'))
        with pytest.raises(UserError) as error:
            datasets.load(config, kind=Rows)
        assert words in str(error.value) and '\n' not in str(error.value)


def test_real_file(tmp_path):
    source = real_data('census-income')
    config = Data(dataset=NAME, source=str(source), data_dir=str(tmp_path))
    rows, meta = datasets.load(config, say=lambda line: None, kind=Rows)
    rates = meta['statistics']['labels']
    assert len(rows) == 99_762 and rows.labels['income'].sum() == 6_186
    assert rates['never_married'] == pytest.approx(0.4325, abs=5e-5)
    assert rates['education'] == pytest.approx(0.1950, abs=5e-5)
    pairs = (('income', 0.1787), ('education', 0.2376))
    for name, wanted in pairs:
        found = np.corrcoef(rows.labels[name], rows.labels['never_married'])[0, 1]
        assert abs(found) == pytest.approx(wanted, abs=5e-5)
