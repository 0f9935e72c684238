"""Pairs of users and items that come split: train.txt and test.txt, without times or order.

The split is in the column `part` of the events, which task.split='given' reads. There is no
validation part: the papers stop on the test file. Here one is drawn from train (task.valid_share).
"""

import io
from collections.abc import Callable

from jaxrec.datasets import text_layouts
from jaxrec.datasets.events import Events
from jaxrec.datasets.movielens import LICENCE as MOVIELENS_LICENCE
from jaxrec.datasets.public import DataSet, read_file


def _data_set(url: str, sha256: dict[str, str], **about) -> DataSet:
    def read(source: str, say: Callable) -> tuple[Events, str]:
        files, names = {}, {}
        for part in ('train', 'test'):
            data, names[part] = read_file(source, say, f'{url}/{part}.txt', sha256[part])
            files[part] = io.BytesIO(data)
        return text_layouts.read_train_test(files, names), source or url

    return DataSet(**about, read=read)


GOWALLA = _data_set(
    'https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data/gowalla',
    {  # of train there are copies with a user's items in several orders: the size is checked
        'train': '',
        'test': '099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3',
    },
    name='gowalla',
    description='Gowalla check-ins, users and places with at least 10, a random 80 and 20 % of a '
    'user, as published with NGCF and LightGCN.',
    citation='Wang et al., Neural Graph Collaborative Filtering, SIGIR 2019, arXiv:1905.08108; '
    'He et al., LightGCN, SIGIR 2020, arXiv:2002.02126',
    homepage='https://github.com/gusye1234/LightGCN-PyTorch',
    licence='no licence text comes with the file; derived from the Gowalla check-ins of SNAP: ask '
    'before redistributing',
    size=(29_858, 40_981, 1_027_370),
)
ML_1M = _data_set(
    'https://raw.githubusercontent.com/xue-pai/UltraGCN/main/data/ml-1m',
    {
        'train': 'f088986b22f14f17136f9c4ef6f1269201f83dfb9ce259f1fd4ed46d72a92599',
        'test': '7ca364f7f9321417b521745833b12719a2feb13253bccece2c04d5afe9fc3e15',
    },
    name='ml-1m-graph',
    description='MovieLens-1M as a graph of users and films, all ratings alike: the train and test '
    'parts of a random 8:1:1 split, of which the validation part was not published.',
    citation='Mao et al., UltraGCN, CIKM 2021, arXiv:2110.15114; the split is of Yu and Qin, LCFN, '
    'ICML 2020, arXiv:2006.15516',
    homepage='https://github.com/xue-pai/UltraGCN',
    licence=MOVIELENS_LICENCE,
    size=(6_022, 3_043, 895_699),
)
