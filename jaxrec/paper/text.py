"""The table as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Callable

from jaxrec.paper.grid import ALPHA, Grid, Line, Value

FLAG = '⚠'
_TEST = {'t': 'paired t-test', 'bootstrap': 'paired bootstrap'}


def number(value: float) -> str:
    """'.0999', '-.0012'."""
    return re.sub(r'^(-?)0\.', r'\1.', f'{value:.4f}')


def notes(grid: Grid) -> list[str]:
    """What a reader has to know beside the numbers, in sentences."""
    lines = [grid.table.caption] if grid.table.caption else []
    for column, one in grid.protocols.items():
        protocol = ', '.join(f'{name}={value}' for name, value in one.items())
        lines.append(f'Protocol{" of " if column else ""}{column}: {protocol}.')
    if grid.protocols:
        hashes = ', '.join(f'{column} {h[:12]}' for column, h in grid.data.items())
        lines.append(f'Data hashes: {hashes}.')
        seeds = sorted({v.seeds for line in grid.lines for v in line.values.values() if v.seeds})
        lines.append(
            f'Ours: mean over {" or ".join(map(str, seeds))} seeds ± 95 % confidence interval of '
            'that mean (Student); checkpoints chosen on validation.'
        )
        units = ' and '.join(sorted({f'{record["unit"]}s' for record in grid.records.values()}))
        lines.append(
            f'▲ ▼: significantly above or below "{grid.table.baseline}" ({_TEST[grid.test]} over '
            f'{units} of the mean over seeds, Holm over all such tests of the table, p < {ALPHA}). '
            'Bold: the best of our rows, underlined: the second, marked only where each beats the '
            'next one significantly by the same test. Published numbers take no part in tests.'
        )
    if any(map(_flag, grid.lines)):
        lines.append(f'{FLAG}: doubtful, or impossible as the result of one run, see its source.')
    if grid.missing:
        lines.append(f'Not run yet: {"; ".join(grid.missing)}.')
    return lines


def sources(grid: Grid) -> list[tuple[int, Line]]:
    """Published lines with the numbers of their footnotes."""
    return list(enumerate((line for line in grid.lines if line.published), 1))


def _flag(line: Line) -> str:
    """The sign of a published line that there is a reason to doubt."""
    return FLAG if line.published and (line.problems or line.published.doubt) else ''


def footnote(line: Line) -> str:
    """Source of a published line, and every reason to doubt it."""
    about = line.published
    doubts = [f'{c}: {p}' for c, problems in line.problems.items() for p in problems]
    parts = [f'{about.source} {about.tag}.', about.doubt]
    if doubts:
        parts.append(f'Cannot come from one run: {"; ".join(doubts)}.')
    return ' '.join(part for part in parts if part)


def verdicts(grid: Grid) -> list[list[str]]:
    """Rows of the table of published orderings: claim, source, where, difference, verdict."""
    rows = []
    for v in grid.verdicts:
        shown = '–' if v.result is None else f'{v.result["difference"]:+.4f}'
        shown += f' beyond {v.margin:.0%}' if v.margin and v.result else ''
        where = f'{v.column} {v.metric}'
        if v.among:
            where += f', {v.among[0]} {v.among[1]} ({v.examples:,})'
        rows.append([f'{v.better} > {v.worse}', v.claim, v.source, where, shown, v.text])
    return rows


VERDICT_HEADS = ['ordering', 'claim', 'source', 'where', 'ours', 'verdict']


def markdown(grid: Grid) -> str:
    """GitHub's dialect."""

    def shown(value: Value) -> str:
        text = number(value.mean)
        if value.mark:
            text = {'best': f'**{text}**', 'second': f'<ins>{text}</ins>'}[value.mark]
        if value.half is not None:
            text += f' ± {number(value.half)}'
        return text + {'+': ' ▲', '-': ' ▼', '': ''}[value.star]

    numbers = {id(line): n for n, line in sources(grid)}
    rows = [['', *(f'{column} {metric}' for column, metric in grid.heads)]]
    rows.append(['---', *['--:'] * len(grid.heads)])
    for line in grid.lines:
        name = line.name
        if line.published:
            name = f'*{name}* [{numbers[id(line)]}] {_flag(line)}'.rstrip()
        rows.append([name, *_values(grid, line, shown)])
    out = [f'# {grid.table.title}', '', *piped(rows), '']
    for note in notes(grid):
        out += [note, '']
    for n, line in sources(grid):
        out.append(f'- [{n}] {line.name}: {footnote(line)}')
    if grid.verdicts:
        out += ['', '## Published orderings', '']
        out += piped([VERDICT_HEADS, ['---'] * len(VERDICT_HEADS), *verdicts(grid)])
    return '\n'.join(out).rstrip() + '\n'


def latex(grid: Grid) -> str:
    r"""A `table` for the packages booktabs and amssymb."""

    def shown(value: Value) -> str:
        text = number(value.mean)
        if value.mark:
            text = {'best': rf'\textbf{{{text}}}', 'second': rf'\underline{{{text}}}'}[value.mark]
        if value.half is not None:
            text += rf' {{\scriptsize $\pm$ {number(value.half)}}}'
        stars = {'+': r'$^{\blacktriangle}$', '-': r'$^{\blacktriangledown}$', '': ''}
        return text + stars[value.star]

    numbers = {id(line): n for n, line in sources(grid)}
    spans, rules, at = [], [], 2
    for column in grid.table.columns:
        width = len(column.metrics)
        spans.append(rf'\multicolumn{{{width}}}{{c}}{{{_tex(column.name)}}}')
        rules.append(rf'\cmidrule(lr){{{at}-{at + width - 1}}}')
        at += width
    out = [
        '% needs \\usepackage{booktabs} and \\usepackage{amssymb}',
        r'\begin{table}',
        r'\centering',
        rf'\caption{{{_tex(grid.table.title)}}}',
        rf'\begin{{tabular}}{{l{"r" * len(grid.heads)}}}',
        r'\toprule',
        ' & ' + ' & '.join(spans) + r' \\',
        ' '.join(rules),
        ' & ' + ' & '.join(_tex(metric) for _, metric in grid.heads) + r' \\',
        r'\midrule',
    ]
    for line in grid.lines:
        name = _tex(line.name)
        if line.published:
            mark = f'{numbers[id(line)]}{_tex(_flag(line))}'
            name = rf'\quad\textit{{{name}}}$^{{{mark}}}$'
        out.append(f'{name} & ' + ' & '.join(_values(grid, line, shown, '--')) + r' \\')
    out += [r'\bottomrule', r'\end{tabular}', r'\par\smallskip\footnotesize\raggedright']
    out += [_tex(note) + r'\par' for note in notes(grid)]
    out += [rf'$^{{{n}}}$ {_tex(footnote(line))}\par' for n, line in sources(grid)]
    out += [_tex(' | '.join(row)) + r'\par' for row in verdicts(grid)]
    return '\n'.join([*out, r'\end{table}']) + '\n'


def comma_separated(grid: Grid) -> str:
    """One line per number, with everything that is known of it."""
    heads = ['row', 'kind', 'column', 'metric', 'mean', 'half_width', 'seeds', 'mark']
    heads += ['difference', 'low', 'high', 'p', 'p_holm', 'source', 'tag', 'doubt', 'data_hash']
    rows = [heads]
    for line in grid.lines:
        for column, metric in grid.heads:
            value = line.values.get((column, metric))
            if value is None:
                continue
            of, versus = line.published, value.versus or {}
            doubt = '; '.join([*([of.doubt] if of and of.doubt else []), *_doubts(line, column)])
            tested = [_plain(versus.get(n)) for n in ('difference', 'low', 'high', 'p', 'adjusted')]
            about = [of.source, of.tag, doubt, ''] if of else ['', '', '', grid.data[column]]
            mean = f'{value.mean:.4f}' if of else _plain(value.mean)
            kind = 'published' if of else 'ours'
            seeds = value.seeds or ''
            own = [line.name, kind, column, metric, mean, _plain(value.half), seeds, value.mark]
            rows.append([*own, *tested, *about])
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows(rows)
    return out.getvalue()


def _doubts(line: Line, column: str) -> list[str]:
    return [f'cannot come from one run: {p}' for p in line.problems.get(column, [])]


def _plain(value: float | None) -> str:
    return '' if value is None else f'{value:.8g}'


def _values(grid: Grid, line: Line, shown: Callable, missing: str = '–') -> list[str]:
    return [shown(line.values[h]) if h in line.values else missing for h in grid.heads]


def piped(rows: list[list[str]]) -> list[str]:
    return ['| ' + ' | '.join(cell.replace('|', r'\|') for cell in row) + ' |' for row in rows]


_TEX = {
    '\\': r'\textbackslash{}',
    '▲': r'$\blacktriangle$',
    '▼': r'$\blacktriangledown$',
    '±': r'$\pm$',
    '⚠': '!',
    '–': '--',
    '>': '$>$',
    '<': '$<$',
    '≥': r'$\geq$',
    'λ': r'$\lambda$',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    **{c: f'\\{c}' for c in '&%$#_{}'},
}


def _tex(text: str) -> str:
    return ''.join(_TEX.get(c, c) for c in text)
