"""Write tables in LaTeX: booktabs, every letter of the user's escaped, intervals beside the numbers."""

import unicodedata
from collections.abc import Iterator

from gradscope.reporting.tables import Cell, Heading, ReportTable

_LETTERS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{NO-BREAK SPACE}": "~",
    "\N{CHECK MARK}": r"$\surd$",
    "\N{BALLOT X}": r"$\times$",
}
#: Width of a column of sentences as a share of the line, by the number of such columns.
_WIDTHS = {1: 0.4, 2: 0.27, 3: 0.2}
#: The same in a wide table.
_NARROW = {1: 0.26, 2: 0.15}
#: A table of more rows may break over pages.
_BREAKING = 30
#: A table of more columns has the intervals below the numbers.
_WIDE = 7
_PREAMBLE = (
    r"% Needs \usepackage[T1]{fontenc}, \usepackage{textcomp}, \usepackage{booktabs} and \usepackage{longtable}."
)


def escape(text: str) -> str:
    """Escape ``text`` for LaTeX; a letter beyond Latin is written as its code point."""
    return "".join(_letter(letter) for letter in " ".join(text.split()))


def _letter(letter: str) -> str:
    if letter in _LETTERS:
        return _LETTERS[letter]
    if letter.isprintable() and (letter.isascii() or (letter.isalpha() and ord(letter) < 0x180)):
        return letter
    plain = unicodedata.normalize("NFKD", letter)
    if plain != letter and plain.isascii() and plain.isprintable():
        return escape(plain)
    return f"[U+{ord(letter):04X}]"


def latex(table: ReportTable) -> str:
    """Return ``table`` as a LaTeX ``table`` for a document to include; its label is ``tab:NAME``.

    One of more than 30 rows is a ``longtable``, which breaks over pages and wants a text of one column.
    """
    lines = _breaking(table) if len(table.rows) > _BREAKING else _floating(table)
    return "\n".join([_PREAMBLE, *lines]) + "\n"


def _floating(table: ReportTable) -> Iterator[str]:
    yield r"\begin{table}[tbp]"
    yield r"\centering"
    yield from _SIZES
    yield rf"\caption{{{escape(table.caption)}.}}"
    yield rf"\label{{tab:{table.name}}}"
    yield rf"\begin{{tabular}}{{@{{}}{_columns(table)}@{{}}}}"
    yield from _head(table)
    yield from _body(table)
    yield r"\end{tabular}"
    yield r"\end{table}"


def _breaking(table: ReportTable) -> Iterator[str]:
    yield r"\begingroup"
    yield from _SIZES
    yield rf"\begin{{longtable}}{{@{{}}{_columns(table)}@{{}}}}"
    yield rf"\caption{{{escape(table.caption)}.}}\label{{tab:{table.name}}}\\"
    yield from _head(table)
    yield r"\endfirsthead"
    yield from _head(table)
    yield r"\endhead"
    yield from _body(table)
    yield r"\end{longtable}"
    yield r"\endgroup"


_SIZES = (r"\footnotesize", r"\setlength{\tabcolsep}{4pt}")


def _head(table: ReportTable) -> Iterator[str]:
    wide = len(table.headings) > _WIDE
    yield r"\toprule"
    yield " & ".join(_heading(heading, wide) for heading in table.headings) + r" \\"
    yield r"\midrule"


def _body(table: ReportTable) -> Iterator[str]:
    wide = len(table.headings) > _WIDE
    for row in table.rows:
        yield " & ".join(_cell(*pair, wide) for pair in zip(row, table.headings, strict=True)) + r" \\"
    yield r"\bottomrule"


def _columns(table: ReportTable) -> str:
    sentences = sum(heading.kind == "long" for heading in table.headings)
    widths = _NARROW if len(table.headings) > _WIDE else _WIDTHS
    kinds = {"text": "l", "number": "r", "long": rf"p{{{widths.get(sentences, 0.15)}\linewidth}}"}
    return "".join(kinds[heading.kind] for heading in table.headings)


def _heading(heading: Heading, wide: bool) -> str:
    if not heading.aside:
        return escape(heading.text)
    if wide and heading.kind == "number":
        return _stacked(heading.text, heading.aside)
    return f"{escape(heading.text)} ({escape(heading.aside)})"


def _cell(cell: Cell, heading: Heading, wide: bool) -> str:
    if wide and cell.aside and heading.kind == "number":
        return _stacked(cell.text, cell.aside)
    aside = cell.aside if heading.kind == "number" or not cell.aside else f"({cell.aside})"
    # Braces keep a bracket at the start of a row from being read as the space above it.
    return "{" + " ".join(escape(piece) for piece in (cell.text, aside) if piece) + "}"


def _stacked(above: str, below: str) -> str:
    return rf"\shortstack[r]{{{escape(above)}\\{{{escape(below)}}}}}"
