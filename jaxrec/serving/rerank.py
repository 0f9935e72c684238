"""Two stages: the items that a retriever lists, in the order of a ranker's labels."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec.errors import UserError
from jaxrec.serving.scorer import Scorer

COMBINED = {  # by name, the score of (weight, probability) of every label
    'sum': lambda pairs: sum(weight * chance for weight, chance in pairs),
    'product': lambda pairs: math.prod((1 + chance) ** weight for weight, chance in pairs),
}


class Reranker:
    """Orders a list by what the ranker's labels come to together.

    Args:
      scorer: of the ranker.
      weights: by label; {} = 1 each.
      context: of the request, values of the ranker's fields of a row; other columns do not matter.
      combined: 'sum' of weight * p over the labels, or 'product' of (1 + p)^weight, by which Moment
        serves (Kuaishou 2024, arXiv 2408.05709).

    Raises:
      UserError: a label or a number that cannot be, or a field of a row is missing.
    """

    def __init__(
        self,
        scorer: Scorer,
        weights: Mapping[str, float],
        context: Mapping[str, Any],
        combined: str = 'sum',
    ):
        for label in weights:
            if label not in scorer.labels:
                raise UserError(
                    f'the ranker has no label {label!r}; it has {", ".join(scorer.labels)}'
                )
        units = scorer.catalogue.units
        missing = sorted(n for n, unit in units.items() if unit == 'row' and n not in context)
        if missing:
            example = json.dumps(dict.fromkeys(missing))
            raise UserError(
                f"the ranker reads {', '.join(missing)} of a row: give --context='{example}' with "
                'their values, null where one is not known'
            )
        self._scorer, self._context = scorer, dict(context)
        self._combined = COMBINED[combined]
        self.weights = dict(weights) or dict.fromkeys(scorer.labels, 1.0)

    def __call__(self, user: Any, listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The list, highest score first; what the retriever found alike good stays in its order.

        Args:
          user: raw id, None for one that the ranker does not know.
          listed: of `Recommender`, each with 'item' and 'score'.

        Returns:
          The same with 'score' of the ranker, 'retrieved' (the score before) and 'labels', the
          probabilities.

        Raises:
          UserError: the ranker's data have no such user or item.
        """
        rows = [{**self._context, 'user': user, 'item': one['item']} for one in listed]
        found = []
        for one, chances in zip(listed, self._scorer.score(rows), strict=True):
            score = self._combined((weight, chances[name]) for name, weight in self.weights.items())
            found.append({**one, 'retrieved': one['score'], 'score': score, 'labels': chances})
        return sorted(found, key=lambda one: -one['score'])


def parse_weights(text: str) -> dict[str, float]:
    """{label: weight} of 'click=1,like=2.5'; UserError if it is none."""
    weights = {}
    for part in filter(None, text.split(',')):
        label, _, number = part.partition('=')
        try:
            weights[label] = float(number)
        except ValueError as e:
            raise UserError(f'--weights={text}: write LABEL=NUMBER,LABEL=NUMBER') from e
    return weights


def parse_context(text: str) -> dict[str, Any]:
    """The JSON object of --context; UserError if it is none."""
    try:
        context = json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f'--context={text}: no JSON ({e})') from e
    if not isinstance(context, dict) or {'user', 'item'} & context.keys():
        raise UserError(
            f'--context={text}: give an object of the ranker\'s fields of a row, {{"hour": 20}}, '
            'without user and item'
        )
    return context
