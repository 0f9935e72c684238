"""Suite train: the real training step, fed by the real pipeline."""

import dataclasses
import math
import statistics
import time

import jax

from jaxrec.benchmarks import measure
from jaxrec.benchmarks.flops import train_flops
from jaxrec.cli import say
from jaxrec.devices import cluster
from jaxrec.devices.mesh import batch_part, make_mesh
from jaxrec.experiment import Experiment
from jaxrec.malloc import keep_freed
from jaxrec.problem import Problem
from jaxrec.training import workdir
from jaxrec.training.loop import prefetch, steps
from jaxrec.training.state import Program

_WARM_UP = 3  # steps after the one that compiles
_SECONDS = 2.0  # of one measurement, where the number of steps is not given


class Loop:
    """The loop of `jaxrec.train` without checkpoints and validation, in parts to be timed.

    Attributes:
      batches: the batches.
      compile_seconds: wall time of the first step.
      state: the train state.
    """

    def __init__(self, experiment: Experiment, problem: Problem, users_per_batch: int = 0):
        """Builds the state and compiles; `users_per_batch` > 0 replaces train.batch_rows."""
        settings = experiment.train
        self.batches = problem.periods[0]().batches
        if users_per_batch:
            share = users_per_batch / self.batches.examples_per_epoch
            turns = settings.microbatches or 4  # rows that divide well where the device chooses
            multiple = jax.sharding.get_mesh().shape['data'] * turns
            rows = max(round(share * self.batches.rows_per_epoch / multiple), 1) * multiple
            settings = dataclasses.replace(settings, batch_rows=rows)
            experiment = dataclasses.replace(experiment, train=settings)
            self.batches = opened(experiment).periods[0]().batches
        self._experiment, self._num_items = experiment, problem.sizes.get('item', 0)
        horizon = math.ceil(settings.epochs * self.batches.steps_per_epoch)
        program = Program(experiment, problem, horizon)
        self.state = program.init()
        program.start(0)
        self._counts: dict[int, tuple[int, float]] = {}
        keep_freed()
        self._feed, self._done = prefetch(self._counted, 0), 0
        self._steps = steps(program, self.state, self._feed)
        self.compile_seconds = measure.seconds(lambda: self.run(1))
        self.run(_WARM_UP)

    def run(self, steps: int) -> dict:
        """Runs `steps` steps; seconds, real targets, tokens of the batches, useful FLOPs."""
        first, start = self._done, time.perf_counter()
        for _ in range(steps):
            self.state, _ = next(self._steps)
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        self._done += steps
        counts = [self._counts.pop(step) for step in range(first, self._done)]
        targets, flops = (sum(one) for one in zip(*counts, strict=True))
        if cluster.together():  # which have a part of every batch, several the same one
            copies = jax.process_count() // batch_part()[1]
            targets, flops = (one / copies for one in cluster.total([targets, flops]))
        return {
            'steps': steps,
            'seconds': seconds,
            'targets': targets,
            'tokens': steps * self.batches.rows * self._experiment.model.inputs().max_len,
            'flops': flops,
        }

    def close(self) -> None:
        """Stops the thread that makes batches."""
        self._steps.close()
        self._feed.close()

    def _counted(self, step: int) -> dict:
        batch = self.batches(step)
        flops = train_flops(self._experiment, self._num_items, batch)
        self._counts[step] = (int((batch['weights'] > 0).sum()), flops)
        return [batch]


def opened(experiment: Experiment) -> Problem:
    """The experiment's problem, its batches those of this process, on the current mesh.

    Raises:
      UserError: the processes have other data or settings.
    """
    problem = experiment.task.open(experiment, say, batch_part())
    workdir.check_processes(experiment, problem)
    return problem


def measure_training(
    experiment: Experiment,
    *,
    repeats: int,
    steps: int,
    users_per_batch: int,
    matmul_size: int,
    peer=None,
    against: Experiment | None = None,
) -> dict:
    """Targets per second of the training step, in turns with the matrix product and the peer.

    Args:
      experiment: what to train.
      repeats: number of turns.
      steps: steps of one turn; 0 takes about two seconds of them.
      users_per_batch: rows per batch that hold about so many users; 0 = train.batch_rows.
      matmul_size: see `measure.Matmul`.
      peer: None, or a function (experiment, problem) -> `peer.Peer`.
      against: another experiment on the same data, whose step takes its turns too.
    """
    jax.set_mesh(make_mesh(experiment.mesh))
    problem = opened(experiment)
    loop = Loop(experiment, problem, users_per_batch)
    other = peer(experiment, problem) if peer else None
    second = None
    if against:
        second = Loop(against, opened(against), users_per_batch)
    dtype = 'bfloat16' if getattr(experiment.model, 'bf16', False) else 'float32'
    matmul = measure.Matmul(matmul_size, dtype)
    if not steps:
        took = loop.run(_WARM_UP)['seconds']
        steps = cluster.agreed(max(1, round(_SECONDS * _WARM_UP / took)))
    turns = []
    for number in range(repeats):
        before, ours, after = matmul.sample(), loop.run(steps), matmul.sample()
        rate = statistics.mean((before, after))
        theirs, seconds = other and other.measure(), second and second.run(steps)['seconds']
        turns.append(turn(ours, rate, theirs, seconds))
        say(f'{number + 1}/{repeats}  {turn_line(turns[-1])}')
    if warning := matmul.warning():
        say(warning)
    memory = measure.peak_memory()
    for one in (loop, other, second):
        if one:
            one.close()
    median = {name: _median(turns, name) for name in turns[0]}
    gflops = median['gflops']  # None where they are not counted
    return {
        'unit': 'targets/s',
        'ours': median['ours'],
        'peer': median['peer'],
        'ratio': median['ratio'],
        'turns': turns,
        'step_ms': median['step_ms'],
        'against_ms': median['against_ms'],
        'of_against': median['of_against'],
        'tokens_per_second': median['tokens_per_second'],
        'gflops': gflops,
        'of_matmul': median['of_matmul'],
        'mfu': gflops and measure.model_flops_utilisation(gflops * 1e9, dtype),
        'matmul_gflops': matmul.gflops,
        'matmul_range': [min(matmul.samples), max(matmul.samples)],
        'compile_seconds': loop.compile_seconds,
        'peak_memory_mib': None if second else memory,  # of both
        'batch_rows': loop.batches.rows,
        'users_per_batch': loop.batches.examples_per_epoch / loop.batches.steps_per_epoch,
        'fill': loop.batches.fill,
        'steps_per_turn': steps,
        'peer_about': other.about if other else None,
        'data_hash': problem.data_hash,
    }


def turn(
    ours: dict, matmul_gflops: float, theirs: dict | None, against: float | None = None
) -> dict:
    """One turn: rates of ours and of what it is held against, on the same machine within seconds.

    Args:
      ours: of `Loop.run`.
      matmul_gflops: rate of the matrix product.
      theirs: the peer's turn, if there is one.
      against: seconds that as many steps of the other experiment took, if there is one.
    """
    seconds = ours['seconds']
    gflops = ours['flops'] / seconds / 1e9
    rates = {
        'ours': ours['targets'] / seconds,
        'peer': theirs['count'] / theirs['seconds'] if theirs else None,
        'ratio': None,
        'step_ms': 1e3 * seconds / ours['steps'],
        'against_ms': against and 1e3 * against / ours['steps'],
        'of_against': against and seconds / against,
        'tokens_per_second': ours['tokens'] / seconds,
        'gflops': None if math.isnan(gflops) else gflops,
        'matmul_gflops': matmul_gflops,
        'of_matmul': None if math.isnan(gflops) else gflops / matmul_gflops,
    }
    if theirs:
        rates['ratio'] = rates['ours'] / rates['peer']
    return rates


def turn_line(turn: dict) -> str:
    """One turn as text."""
    text = f'{turn["step_ms"]:.1f} ms/step  {turn["ours"]:,.0f} targets/s'
    if turn['gflops'] is not None:
        text += (
            f'  {turn["gflops"]:.1f} of {turn["matmul_gflops"]:.1f} GFLOP/s '
            f'({turn["of_matmul"]:.0%})'
        )
    if turn['of_against'] is not None:
        text += f'  {turn["of_against"]:.2f} times {turn["against_ms"]:.1f} ms'
    if turn['peer'] is not None:
        text += f'  peer {turn["peer"]:,.0f} targets/s  ratio {turn["ratio"]:.1f}'
    return text


def _median(turns: list[dict], name: str) -> float | None:
    values = [turn[name] for turn in turns]
    return None if None in values else statistics.median(values)
