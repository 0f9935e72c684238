"""Clients of the service: as many as there are to be, each with one connection, asking at once."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Answer = tuple[float, int, bytes]  # seconds, status, body


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes
) -> tuple[int, bytes]:
    """(status, body) of one POST.

    Raises:
      ConnectionError: the service closed before the answer was whole.
    """
    head = f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n'
    writer.write(head.encode() + body)
    try:
        head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').split('\r\n')
        fields = dict(line.lower().split(': ', 1) for line in head[1:] if line)
        found = await reader.readexactly(int(fields['content-length']))
    except asyncio.IncompleteReadError as e:
        raise ConnectionError('closed before the answer was whole') from e
    return int(head[0].split()[1]), found


async def _client(address, path, bodies: Iterator[bytes], until: float) -> list[Answer]:
    reader, writer = await asyncio.open_connection(*address)
    answers = []
    while (started := time.perf_counter()) < until:
        status, found = await exchange(reader, writer, path, next(bodies))
        answers.append((time.perf_counter() - started, status, found))
    writer.close()
    return answers


def load(
    address: tuple[str, int], path: str, bodies: Sequence[bytes], clients: int, seconds: float
) -> list[Answer]:
    """The answers that so many clients get in so many seconds, each asking when it was answered."""

    def endless(seed) -> Iterator[bytes]:
        rng = np.random.default_rng(seed)
        while True:
            yield bodies[rng.integers(len(bodies))]

    async def main():
        until = time.perf_counter() + seconds
        asking = (_client(address, path, endless(n), until) for n in range(clients))
        return [one for answers in await asyncio.gather(*asking) for one in answers]

    return asyncio.run(main())


def percentile(answers: Sequence[Answer], share: float) -> float:
    """Milliseconds within which that share of the answers came."""
    return float(np.quantile([seconds for seconds, _, _ in answers], share) * 1e3)


def check(answers: Sequence[Answer], fits: Callable[[int], bool] = lambda s: s == 200) -> None:
    """Raises RuntimeError if an answer is not as it should be."""
    wrong = [(status, found) for _, status, found in answers if not fits(status)]
    if wrong:
        raise RuntimeError(f'{len(wrong)} of {len(answers)} answers are {wrong[0]}')
