"""Published files that a machine may have: tests of them are skipped, with a reason, elsewhere."""

import os
import pathlib

import pytest


def real_data(*where: str) -> pathlib.Path:
    """A file or folder below JAXREC_TEST_DATA, or the test is left out."""
    root = os.environ.get('JAXREC_TEST_DATA')
    if not root:
        pytest.skip('JAXREC_TEST_DATA names no folder with the published files')
    source = pathlib.Path(root).joinpath(*where)
    if not source.exists():
        pytest.skip(f'{source} is not there')
    return source
