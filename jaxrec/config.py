"""The typed dataclasses an experiment is made of. No logic lives here.

A field may carry rules (`field`): its range, whether it changes a result, whether it may differ
between runs of one program. Whoever needs to know reads them there: the check of an experiment,
`--help`, the comparison with a run that goes on, the hash of a table's cell.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

LARGEST_SEED = 2**63 - 1  # no two of 0 .. this share a stream or a key, see `rng`


def field(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Collection[str] = (),
    effect: str = 'result',
    traced: bool = False,
) -> Any:
    """A field of a settings dataclass, with its rules.

    Args:
      default: its value where nothing is said.
      least, above, most, below: its range, of a number: >=, >, <=, <.
      choices: the texts it may be.
      effect: 'result' changes what is learnt, 'measure' only how it is measured; 'seed' is the axis
        of repeated runs; 'place' says where, 'pace' how often or in which portions: these change
        nothing; 'length' and 'epochs' say how far a run goes, so that one may go on with more.
      traced: may differ between the runs of one program (`training.parallel_runs`): it is only
        calculated with.
    """
    rules = {
        'least': least,
        'above': above,
        'most': most,
        'below': below,
        'choices': tuple(choices),
        'effect': effect,
        'traced': traced,
    }
    return dataclasses.field(default=default, metadata=rules)


@dataclasses.dataclass
class Data:
    """Which data to learn from, and how to read them."""

    dataset: str = ''  # name of a public data set (see `python -m jaxrec.prepare --help`)
    source: str = field('', effect='place')  # file or folder to read `dataset` from
    log: str = field('', effect='place')  # own log file; wins over `dataset`; its content counts
    layout: str = 'auto'  # of `log`: auto | table | sequences | pairs | train-test
    user_col: str = 'user'
    item_col: str = 'item'
    time_col: str = 'timestamp'  # '' = the file is already in time order
    columns: str = ''  # of a text table without a header line: the names of all its columns
    features: str = ''  # of a table `log`: numeric columns kept with every event, 'COL,COL'
    domain_col: str = ''  # of a table `log`: which of several catalogues the item is of, in words
    # table of the items' texts, of `log` or `dataset`; what it alone names joins the catalogue
    texts: str = field('', effect='place')  # its content counts
    text_col: str = 'text'  # of `texts`, beside `item_col`; several, 'title,brand', are joined
    text_columns: str = ''  # of `texts` without a header line: the names of all its columns
    min_user: int = field(0, least=0)  # k-core: least events per user, iterated with min_item
    min_item: int = field(0, least=0)
    data_dir: str = field('~/.cache/jaxrec', effect='place')  # where prepared data sets are kept


@dataclasses.dataclass
class Optim:
    """Optimiser: Adam, or AdamW when weight_decay > 0."""

    learning_rate: float = field(1e-3, above=0, traced=True)
    b1: float = field(0.9, least=0, below=1, traced=True)
    b2: float = field(0.98, least=0, below=1, traced=True)
    eps: float = field(1e-8, above=0, traced=True)
    weight_decay: float = field(0.0, least=0)
    # of the model's tables; the last two touch the rows of a batch only (training/sparse)
    table: str = field('dense', choices=('dense', 'rowwise_adagrad', 'sparse_adam'))
    clip_norm: float = field(0.0, least=0)  # 0 = no clipping by global norm
    # linear and cosine decay to 0 over train.epochs
    schedule: str = field('constant', choices=('constant', 'linear', 'cosine'))
    warmup_steps: int = field(0, least=0)
    ema: float = field(0.0, least=0, below=1)  # of the averaged parameters that are evaluated


@dataclasses.dataclass
class Train:
    """The training run."""

    batch_rows: int = field(128, least=1)  # rows per step, over all devices
    # turns in which a step works through its rows; 0 = as the device likes it (devices/tuning)
    microbatches: int = field(1, least=0)
    epochs: int = field(20, least=1, effect='epochs')
    steps: int = field(0, least=0, effect='length')  # > 0: stop after so many, whatever `epochs`
    seed: int = field(0, least=0, most=LARGEST_SEED, effect='seed')
    eval_every: float = field(1.0, above=0)  # epochs between validations
    eval_steps: int = field(0, least=0)  # and no fewer steps: epochs of small logs are short
    # validations without a new best before stopping, four times as many while the best is no better
    # than popularity; 0 = never
    patience: int = field(0, least=0)
    metric: str = ''  # of the best checkpoint and early stopping; '' = the task's main metric
    save_every: float = field(10.0, least=0, effect='pace')  # minutes between checkpoints; 0 = none
    log_every: int = field(50, least=1, effect='pace')  # steps between lines in metrics.jsonl
    # of a step's matrix products; default: what the backend does, bfloat16 on a TPU, TF32 on a GPU
    precision: str = field('default', choices=('default', 'high', 'highest'))
    # work directory of a run whose parameters to begin with, as far as their names are known here
    # (training/warm_start)
    start_from: str = ''
    start_with: str = field('best', choices=('best', 'last'))  # which of its checkpoints
    # with start_from: go on with its whole last train state; items may be new or gone
    grow: bool = False


@dataclasses.dataclass
class Mesh:
    """Device mesh ('data', 'model'); data = 0 takes all devices that model leaves."""

    data: int = field(0, least=0, effect='place')
    model: int = field(1, least=1, effect='place')


KINDS = ('category', 'set', 'uniform', 'log', 'quantile')


@dataclasses.dataclass
class Feature:
    """One attribute of an event or of its item.

    kind            values                                    code
    category        whole numbers 0 .. size - 1               1 + value
    set             of an item: T numbers 1 .. size, or 0     the numbers (the model averages them)
    uniform         0 <= value < cap, equal widths            1 + floor(size value / cap)
    log             0 <= value < cap, equal ratios            1 + floor(size log(1 + value) /
                                                              log(1 + cap))
    quantile        any; buckets of equally many training     1 + number of edges <= value
                    events

    Values beyond (a category of size or more, cap or more, more than any in training) share code
    size + 1. NaN, and negative values but for quantile, are missing: code 0.
    """

    column: str  # of the histories' event or item columns, or 'gap'
    kind: str = 'category'
    size: int = 2  # categories, or buckets
    cap: float = 0.0  # uniform and log: where the overflow bucket begins

    @property
    def rows(self) -> int:
        """Of its table: codes 0 .. size + 1."""
        return self.size + 2


ENCODERS = ('', 'tfidf', 'skipgram', 'wordllama')


@dataclasses.dataclass
class Texts:
    """What the items' texts are made: unit vectors (`data.text_encoders`).

    encoder     a text's vector
    tfidf       TF-IDF of its words, in the leading directions of a singular value decomposition
    skipgram    the mean of its words' vectors, which are learnt from the texts (word2vec)
    wordllama   the mean of its tokens' vectors, which come in a package (`.[text]`); English above
                all
    """

    encoder: str = field('', choices=ENCODERS)  # '' = texts are not read
    dim: int = field(128, least=1)  # of the vectors; of wordllama 64, 128 or 256
    centred: bool = True  # the mean of all items taken away, before vectors are made unit


SIGNAL_KINDS = ('binary', 'percentile')


@dataclasses.dataclass
class Signal:
    """One kind of feedback on an event, a column of the histories' events.

    binary: 1 where the column is above 0. percentile: the place of the value among those of
    training events whose `within` is alike, 0 = the smallest to 1 = the largest, so that units
    cannot dominate: watch time within buckets of the video's duration.
    """

    column: str
    weight: float = field(1.0, least=0)  # positive ones are made to add up to 1
    kind: str = field('binary', choices=SIGNAL_KINDS)
    within: str = ''  # percentile: column of events or items that is cut into buckets; '' = none
    buckets: int = field(20, least=1)  # of equally many training events
    negative: bool = False  # takes its weight away, and the event was disliked


@dataclasses.dataclass
class Rewards:
    """What an event was worth, in [0, 1]; without signals 1 (`data.rewards`)."""

    signals: tuple[Signal, ...] = ()
    liked: float = field(0.5, above=0, most=1)  # least reward of an event that was liked
    # most reward of one that was disliked; so is any with a negative signal
    disliked: float = field(0.0, least=0, below=1)


# What fields were called before there were tasks.
RENAMED = {
    **{
        f'data.{name}': f'task.{name}'
        for name in (
            'split',
            'valid_share',
            'test_share',
            'windows',
            'cuts',
            'windows_per_user',
            'unseen_negatives',
        )
    },
    **{
        f'eval.{name}': f'task.{name}'
        for name in ('protocol', 'filter_seen', 'negatives', 'cutoffs', 'batch_users')
    },
    'train.eval_users': 'task.valid_users',
    'eval': 'task, e.g. task=tasks.Default(protocol=..)',
    'data.grow_vocabulary': 'train.start_from (with train.grow)',
}
