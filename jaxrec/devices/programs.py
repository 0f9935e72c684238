"""How training is compiled, and where programs are kept: a second start compiles nothing."""

import hashlib
import os
import pathlib
import platform
import re
import tempfile
import warnings

import jax

from jaxrec.cli import say
from jaxrec.devices.mesh import platform as platform_of_mesh

_TROUBLE = 'Error (reading|writing) persistent compilation cache'  # how warnings of JAX begin


def deterministic() -> dict[str, bool] | None:
    """Compiler options of a program for the current mesh that gives the same bits every time.

    On a GPU sums of rows that fall on one another (the gradient of every lookup) are otherwise
    atomic, in whatever order; with these they are sorted first, and no kernel is chosen by how fast
    it was that day. CPUs and TPUs need none.
    """
    return {'xla_gpu_deterministic_ops': True} if platform_of_mesh() == 'gpu' else None


def keep() -> None:
    """Keeps compiled programs below the user's cache folder, for the process from now on.

    $JAX_COMPILATION_CACHE_DIR says where instead, and JAX_ENABLE_COMPILATION_CACHE=0 keeps none. A
    folder that cannot be written, or programs that cannot be read, cost a line and no more than the
    compilation.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as e:  # no home: RuntimeError
        say(f'compiled programs are not kept: {e}')
        return
    jax.config.update('jax_compilation_cache_dir', str(folder))
    _heal(folder)


def _folder() -> pathlib.Path:
    """Of this kind of machine: a home may be shared, and programs for one CPU end on another."""
    cache = os.environ.get('XDG_CACHE_HOME')
    cache = pathlib.Path(cache) if cache else pathlib.Path.home() / '.cache'
    about = [platform.machine(), platform.processor()]
    cpu = pathlib.Path('/proc/cpuinfo')
    if cpu.exists():
        wanted = ('model name', 'flags', 'Features')
        about += sorted({one for one in cpu.read_text().splitlines() if one.startswith(wanted)})
    machine = hashlib.sha256('\n'.join(about).encode()).hexdigest()[:12]
    return cache / 'jaxrec-programs' / machine


def _heal(folder: pathlib.Path) -> None:
    """Turns JAX's warnings of the cache into one line, and throws damaged programs away."""
    show, told = warnings.showwarning, []

    def shown(message, *args, **kwargs):
        if not re.match(_TROUBLE, str(message)):
            show(message, *args, **kwargs)
            return
        if 'reading' in str(message):  # it does not say which
            for path in folder.glob('*-cache'):
                path.unlink(missing_ok=True)
        if not told:
            told.append(message)
            say(f'kept programs in {folder} are compiled anew: {" ".join(str(message).split())}')

    warnings.filterwarnings('always', _TROUBLE)
    warnings.showwarning = shown
