"""Questions that arrive one by one, answered many at a time: a bounded queue and micro-batches."""

import asyncio
import collections
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any


class Full(Exception):
    """As many wait as may: to be asked again later."""


class Batcher:
    """While one batch is answered the next one gathers: nobody waits for a batch to fill up.

    Args:
      answer: of questions, what to tell each, or the exception to raise; runs in one thread.
      most: weight of a batch; a heavier question goes alone.
      waiting: weight that may wait.
    """

    def __init__(
        self, answer: Callable[[Sequence[Any]], Sequence[Any]], *, most: int, waiting: int
    ):
        self._answer, self._most, self._limit = answer, most, waiting
        self._queue, self._some = collections.deque(), asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, 'answers')
        self.waiting = 0  # weight that waits

    async def ask(self, question: Any, weight: int) -> Any:
        """What `answer` says to it.

        Args:
          question: for `answer`.
          weight: of the question, histories or rows.

        Raises:
          Full: no more can wait. Where nothing waits, a question of any weight may.
        """
        if self.waiting and self.waiting + weight > self._limit:
            raise Full
        future = asyncio.get_running_loop().create_future()
        self._queue.append((question, weight, future))
        self.waiting += weight
        self._some.set()
        return await future

    async def run(self) -> None:
        """Answers, until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._some.wait()
                questions, futures = self._next()
                try:
                    found = await loop.run_in_executor(self._thread, self._answer, questions)
                except Exception as e:  # of all of them; the next batch is another one
                    found = [e] * len(questions)
                for future, one in zip(futures, found, strict=True):
                    if future.done():  # whoever asked is gone
                        continue
                    raised = isinstance(one, Exception)
                    (future.set_exception if raised else future.set_result)(one)
        finally:
            self._thread.shutdown()

    def _next(self):
        """(questions, futures) of the next batch."""
        questions, futures, total = [], [], 0
        while self._queue and (not questions or total + self._queue[0][1] <= self._most):
            question, weight, future = self._queue.popleft()
            self.waiting -= weight
            if not future.done():
                questions.append(question)
                futures.append(future)
                total += weight
        if not self._queue:
            self._some.clear()
        return questions, futures
