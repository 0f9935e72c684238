"""The training loop."""

import concurrent.futures
from collections.abc import Callable, Iterator


def prefetch(make: Callable[[int], dict], start: int, ahead: int = 2) -> Iterator[dict]:
    """Yields make(start), make(start + 1), ... made by a background thread `ahead` of time."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting = [thread.submit(make, start + i) for i in range(ahead)]
        step = start + ahead
        while True:
            batch = waiting.pop(0).result()
            waiting.append(thread.submit(make, step))
            step += 1
            yield batch
