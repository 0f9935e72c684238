"""The few shapes in which requests come, so that after a warm-up none is compiled."""

_STEP = 8  # of a shape and the next: padding costs time, a shape a program


def buckets(most: int, least: int) -> tuple[int, ...]:
    """Sizes from `least` to `most` rounded up to a multiple of it, each at most 8 times the last.

    Args:
      most: that comes at once.
      least: the smallest size, of which all are multiples.
    """
    last = -(-most // least) * least
    sizes = [least]
    while sizes[-1] * _STEP < last:
        sizes.append(sizes[-1] * _STEP)
    return tuple(sorted({*sizes, last}))
