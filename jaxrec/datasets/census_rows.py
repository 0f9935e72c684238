"""Census-Income (KDD), its test half, as rows: a person each, three questions about them.

Nobody is asked twice and there is nothing to recommend, so every person is a user with one row, and
all rows are of one item. What tells an answer is no feature: education, marital_stat, income, and
the weight that the survey gave a person.
"""

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from jaxrec.data.rows import Rows
from jaxrec.datasets.public import DataSet, check_sha256, open_source
from jaxrec.datasets.tabular import category
from jaxrec.errors import UserError

NAME = 'census-income-rows'
FILE = 'census-income.test'
SHA256 = '98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c'
HOMEPAGE = 'https://archive.ics.uci.edu/dataset/117/census+income+kdd'
COLUMNS = tuple(
    'age class_worker det_ind_code det_occ_code education wage_per_hour hs_college marital_stat '
    'major_ind_code major_occ_code race hisp_origin sex union_member unemp_reason '
    'full_or_part_emp capital_gains capital_losses stock_dividends tax_filer_stat '
    'region_prev_res state_prev_res det_hh_fam_stat det_hh_summ instance_weight mig_chg_msa '
    'mig_chg_reg mig_move_reg mig_same mig_prev_sunbelt num_emp fam_under_18 father_country '
    'mother_country self_country citizenship own_or_self vet_question vet_benefits weeks_worked '
    'year income'.split()
)
NUMBERS = (
    'age',
    'wage_per_hour',
    'capital_gains',
    'capital_losses',
    'stock_dividends',
    'num_emp',
    'weeks_worked',
)
TOLD = ('education', 'marital_stat', 'instance_weight', 'income')  # what is no feature
CATEGORIES = tuple(name for name in COLUMNS if name not in (*NUMBERS, *TOLD))
COLLEGE = ('Associates', 'Bachelors', 'Masters', 'Prof school', 'Doctorate')  # and how they go on


def read_checked(source: str, say: Callable) -> tuple[Rows, str]:
    """The rows, and where the file was.

    Raises:
      UserError: it is missing, or another one.
    """
    del say
    if not source:
        raise UserError(
            f'{NAME} is not downloaded: get it from {HOMEPAGE} and give --source=FOLDER with {FILE}'
        )
    data, used = open_source(source, FILE)
    check_sha256(data, SHA256, used, FILE)
    return read(data), used


TEST_HALF = DataSet(
    name=NAME,
    description='Census-Income (KDD), test half: income, marriage and education of persons.',
    citation='Census-Income (KDD), UCI Machine Learning Repository, 2000.',
    homepage=HOMEPAGE,
    licence='see the homepage',
    read=read_checked,
)


def read(data: bytes) -> Rows:
    """Rows from the content of the file, in its order; also `fifth`, a row's number modulo 5.

    Labels: income (above 50,000), never_married, education (an associate's degree or more). '?' is
    a category like others.
    """
    table = pa.csv.read_csv(
        io.BytesIO(data),
        read_options=pa.csv.ReadOptions(column_names=COLUMNS),
        parse_options=pa.csv.ParseOptions(quote_char=False),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=False
        ),
    )
    words = {name: pc.utf8_trim_whitespace(table[name]) for name in COLUMNS}
    rows = np.arange(len(table))
    numbers = {name: words[name].cast(pa.float32()).to_numpy() for name in NUMBERS}
    degrees = np.array([text.startswith(COLLEGE) for text in words['education'].to_pylist()])
    return Rows(
        users=rows.astype(np.int32),
        items=np.ones(len(rows), np.int32),
        times=rows,
        user_ids=rows,
        item_ids=np.zeros(1, np.int64),
        features={'fifth': (rows % 5).astype(np.int32)}
        | numbers
        | {name: category(words[name]) for name in CATEGORIES},
        labels={
            'income': pc.equal(words['income'], '50000+.').to_numpy().astype(np.float32),
            'never_married': (
                pc.equal(words['marital_stat'], 'Never married').to_numpy().astype(np.float32)
            ),
            'education': degrees.astype(np.float32),
        },
        name=NAME,
    )
