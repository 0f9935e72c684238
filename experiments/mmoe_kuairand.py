r"""MMoE on KuaiRand-Pure: what users do with a video that is shown to them, eight labels at once.

python -m jaxrec.train --config=experiments/mmoe_kuairand.py --workdir=runs/mmoe \
    --config.data.source=FOLDER
"""

from jaxrec.config import Data, Experiment, Optim, Train
from jaxrec.data.fields import Field
from jaxrec.models import mmoe
from jaxrec.tasks import click

LABELS = ('click', 'long_view', 'like', 'profile_enter', 'comment', 'follow', 'forward', 'hate')
FIELDS = (
    Field('user', least=5),  # 37 % of the test rows have a rarer or a new one
    Field('item'),
    Field('tab'),
    Field('hour'),
    Field('user_active_degree'),
    Field('is_live_streamer'),
    Field('is_video_author'),
    Field('follow_user_num_range'),
    Field('fans_user_num_range'),
    Field('friend_user_num_range'),
    Field('register_days_range'),
    Field('author'),
    Field('upload_type'),
    Field('music_type'),
    Field('duration', 'quantile', size=20),
    Field('tags', 'set'),
    Field('watch', 'set', of='item'),
    Field('long_watch', 'set', of='item'),
)


def get_config(arg: str = '') -> Experiment:
    """The experiment; `arg` is '' (MMoE) or 'shared_bottom'."""
    return Experiment(
        task=click.Config(
            labels=LABELS,
            fields=FIELDS,
            valid_from=20220503,
            test_from=20220505,
            gauc=('click', 'long_view'),
        ),
        model=mmoe.Config(
            experts={'': 6, 'shared_bottom': 1}[arg],
            attend=('watch', 'long_watch'),
            products=(('user', 'item'),),
        ),
        data=Data(dataset='kuairand-pure-rows'),
        optim=Optim(learning_rate=2e-3, b2=0.999),
        train=Train(batch_rows=1024, epochs=4, metric='GAUC/mean'),
    )
