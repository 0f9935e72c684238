"""Suite eval: ranking all users of the test split, with their top-10 lists."""

import dataclasses
import statistics

import jax

from jaxrec.benchmarks import measure
from jaxrec.benchmarks.peer import K
from jaxrec.cli import say
from jaxrec.devices.mesh import make_mesh
from jaxrec.evaluation.run import Pass
from jaxrec.experiment import Experiment
from jaxrec.training import workdir
from jaxrec.training.state import Program, evaluated


def measure_evaluation(
    experiment: Experiment, *, repeats: int, matmul_size: int, peer=None
) -> dict:
    """Users per second: encode, filter seen items, rank the target, top 10, metrics.

    The parameters are the initial ones: time does not depend on them. A turn takes the whole test
    split, batches made anew; its peer makes lists of 10 and two metrics for the same users.

    Args:
      experiment: model and data; its protocol is replaced by the full catalogue, seen items out.
      repeats: number of turns.
      matmul_size: see `measure.Matmul`.
      peer: None, or a function (experiment, problem) -> `peer.Peer`.
    """
    jax.set_mesh(make_mesh(experiment.mesh))
    task = dataclasses.replace(
        experiment.task, protocol='full', filter_seen=True, cutoffs=(1, 5, K)
    )
    experiment = dataclasses.replace(experiment, task=task)
    problem = experiment.task.open(experiment, say)
    workdir.check_processes(experiment, problem)
    program, test = Program(experiment, problem, 1), problem.evaluations['test']()
    params = evaluated(program.init())
    evaluate = Pass(program.graphdef, problem, program.constants)

    def once():
        evaluate(params, test, full=True)

    first = measure.seconds(once)
    other = peer(experiment, problem) if peer else None
    matmul = measure.Matmul(matmul_size)
    turns, users = [], test.examples
    for number in range(repeats):
        rate = matmul.sample()
        seconds = measure.seconds(once)
        turn = {'ours': users / seconds, 'peer': None, 'ratio': None, 'matmul_gflops': rate}
        text = f'{number + 1}/{repeats}  {seconds:.2f} s  {turn["ours"]:,.0f} users/s'
        if other:
            theirs = other.measure()
            turn['peer'] = theirs['count'] / theirs['seconds']
            turn['ratio'] = turn['ours'] / turn['peer']
            text += f'  peer {turn["peer"]:,.0f} users/s  ratio {turn["ratio"]:.1f}'
        turns.append(turn)
        say(f'{text}  (matrix product {rate:.0f} GFLOP/s)')
    if warning := matmul.warning():
        say(warning)
    memory = measure.peak_memory()
    if other:
        other.close()

    def median(name):
        return statistics.median(turn[name] for turn in turns)

    return {
        'unit': 'users/s',
        'ours': median('ours'),
        'peer': median('peer') if other else None,
        'ratio': median('ratio') if other else None,
        'turns': turns,
        'users': users,
        'seconds': users / median('ours'),
        'matmul_gflops': matmul.gflops,
        'matmul_range': [min(matmul.samples), max(matmul.samples)],
        'first_pass_seconds': first,
        'peak_memory_mib': memory,
        'peer_about': other.about if other else None,
        'data_hash': problem.data_hash,
    }
