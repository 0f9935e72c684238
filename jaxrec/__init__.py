"""jaxrec: recommenders in JAX, from a log to a served list or score.

    experiment = jaxrec.Experiment(model=sasrec.Config(), data=jaxrec.Data(log='events.csv'))
    jaxrec.fit(experiment, 'runs/mine')
    jaxrec.evaluate('runs/mine').metrics
    jaxrec.load('runs/mine').recommend([['item 1', 'item 2']], k=10)

Importing it touches no device; the rest is imported when it is first used.
"""

import importlib
from typing import Any

__version__ = '0.1.0'
_HOMES = {
    'Data': 'config',
    'Mesh': 'config',
    'Optim': 'config',
    'Train': 'config',
    'UserError': 'errors',
    'Experiment': 'experiment',
    'fit': 'api',
    'load': 'api',
}
__all__ = sorted([*_HOMES, 'evaluate'])


def __getattr__(name: str) -> Any:
    """What is public, from where it lives."""
    if name == 'evaluate':  # a command and, called, a function
        return importlib.import_module('jaxrec.evaluate')
    if name not in _HOMES:
        raise AttributeError(f'module jaxrec has no attribute {name!r}')
    return getattr(importlib.import_module(f'jaxrec.{_HOMES[name]}'), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
