"""The typed dataclasses an experiment is made of. No logic lives here.

An experiment file returns an `Experiment` from `get_config(arg)`; every field can be overridden on
the command line, e.g. `--config.model.dim=128 --config.data.log=events.csv`.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Data:
    """Which interactions to learn from, and how to read and split them."""

    dataset: str = ''  # name of a public data set (see `python -m jaxrec.prepare --help`)
    source: str = ''  # file or folder to read `dataset` from instead of downloading it
    log: str = ''  # own log file; wins over `dataset`
    layout: str = 'auto'  # of `log`: auto | table | sequences | pairs
    user_col: str = 'user'
    item_col: str = 'item'
    time_col: str = 'timestamp'  # '' = the file is already in time order
    features: str = ''  # of a table `log`: numeric columns kept with every event, 'COL,COL'
    min_user: int = 0  # k-core: least events per user, iterated to a fixed point with min_item
    min_item: int = 0
    data_dir: str = '~/.cache/jaxrec'  # where prepared data sets are kept
    grow_vocabulary: str = ''  # work directory of a run on an earlier state of the log, to go on
    # from with its items and the new ones (see jaxrec.training.warm_start)
    split: str = 'leave-one-out'  # or 'temporal'
    valid_share: float = 0.1  # temporal split: share of the events in the validation period
    test_share: float = 0.1  # temporal split: share of the events in the test period
    windows: str = 'last'  # train on each user's 'last' window of model.max_len, on 'all', or on
    # 'cuts': histories and the one event after each (in-batch losses, see jaxrec.data.cuts)
    cuts: int = 1  # with windows='cuts': targets per window, consecutive
    windows_per_user: int = 0  # with windows='cuts': per user and epoch; 0 = every target once
    unseen_negatives: int = 0  # negatives per target drawn outside the user's training items


@dataclasses.dataclass
class Optim:
    """Optimiser: Adam, or AdamW when weight_decay > 0."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.0
    table: str = (
        'dense'  # item table: dense | rowwise_adagrad | sparse_adam (see jaxrec.training.sparse)
    )
    clip_norm: float = 0.0  # 0 = no clipping by global norm
    schedule: str = 'constant'  # constant | linear | cosine (decay to 0 over train.epochs)
    warmup_steps: int = 0
    ema: float = 0.0  # decay of the averaged parameters that are evaluated; 0 = no averaging


@dataclasses.dataclass
class Train:
    """The training run."""

    batch_rows: int = 128  # packed rows of max_len tokens per step, over all devices
    microbatches: int = 1  # turns in which a step works through its rows, gradients summed
    epochs: int = 20
    steps: int = 0  # > 0: stop after this many steps, whatever `epochs` says
    seed: int = 0
    eval_every: float = 1.0  # epochs between validations
    patience: int = 0  # validations without a new best before stopping; 0 = never
    metric: str = 'NDCG@10'  # validation metric for the best checkpoint and early stopping
    eval_users: int = 0  # validate on at most this many users during training; 0 = all
    save_every: float = 10.0  # minutes between 'last' checkpoints besides validations; 0 = none
    log_every: int = 50  # steps between lines in metrics.jsonl


@dataclasses.dataclass
class Eval:
    """The evaluation protocol (see `jaxrec.evaluation.protocols`)."""

    protocol: str = 'full'  # full | sasrec-2018 | s3rec-99 | uniform | popularity
    filter_seen: bool = True  # score items of the input history -inf (protocol full)
    negatives: int = 100  # sampled candidates per user (protocols uniform and popularity)
    cutoffs: tuple[int, ...] = (1, 5, 10, 20, 50)
    batch_users: int = 512


@dataclasses.dataclass
class Mesh:
    """Device mesh ('data', 'model'); data = 0 takes all devices that model leaves."""

    data: int = 0
    model: int = 1


@dataclasses.dataclass
class Experiment:
    """One experiment: everything that changes its result."""

    model: Any = None  # a model's Config, e.g. jaxrec.models.sasrec.Config()
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    eval: Eval = dataclasses.field(default_factory=Eval)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)


KINDS = ('category', 'set', 'uniform', 'log', 'quantile')
PREFIX = 'feature.'  # of the keys in a batch


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

    @property
    def key(self) -> str:
        """In a batch."""
        return PREFIX + self.column
