"""An HTML page that needs nothing else: style, scripts and data are inside."""

import html
import json
import pathlib
from collections.abc import Sequence
from typing import Any

_HERE = pathlib.Path(__file__).parent
_SHELL = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
<main id="page"></main>
<aside id="panel" hidden></aside>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</html>
"""


def page(title: str, data: Any, scripts: Sequence[pathlib.Path]) -> str:
    """The whole page.

    Args:
      title: of the page.
      data: JSON-ready; `DATA` of the scripts.
      scripts: files that draw it, after the helpers.
    """
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False)
    parts = [_HERE / 'helpers.js', *scripts]
    return _SHELL.format(
        title=html.escape(title),
        style=(_HERE / 'style.css').read_text(encoding='utf-8'),
        script='\n'.join(path.read_text(encoding='utf-8') for path in parts),
        data=text.replace('<', '\\u003c'),  # so that nothing in it ends the script
    )
