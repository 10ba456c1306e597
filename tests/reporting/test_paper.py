"""What a paper would include: LaTeX that is balanced and escaped, and figures under stable names."""

import re

import pytest

from gradscope.reporting.latex import escape, latex
from gradscope.reporting.tables import Cell, Heading, ReportTable

SPECIAL = re.compile(r"(?<!\\)[#$%&_^~]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 100 %", r"a\_b \& 100 \%"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("#1 ^ ~ $", r"\#1 \textasciicircum{} \textasciitilde{} \$"),
        ("</script>", r"\textless{}/script\textgreater{}"),
        ("\N{MINUS SIGN}3 \N{EN DASH} ✓", r"$-$3 -- $\surd$"),
        ("é ﬁ", "é fi"),
        ("中\n\tx", "[U+4E2D] x"),
        ("a\x00b", "a[U+0000]b"),
    ],
)
def test_letters_are_printed_as_they_are(text, expected):
    assert escape(text) == expected


def assert_compiles(source: str) -> None:
    """Braces and environments close, and rows have the columns that were declared."""
    body = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[\\{}%&#_$]", "", body)
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    open_environments = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    assert bare.count("$") % 2 == 0
    (columns,) = re.findall(r"\\begin\{tabular\}\{@\{\}(.*)@\{\}\}", body)
    width = len(re.findall(r"p\{[^}]*\}|[lr]", columns))
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert rows
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {width}
    assert all(body.count(rule) == 1 for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert source.isascii() or not re.search(r"[^\x00-\u017f]", source)


def test_every_table_would_compile(study):
    tables = {path.stem: path.read_text() for path in (study / "paper").glob("*.tex")}
    assert tables.keys() == {"models", "attacks", "transfer", "similarity", "audit", "claims", "statements"}
    for name, source in tables.items():
        assert_compiles(source)
        assert rf"\label{{tab:{name}}}" in source
    assert r"\textless{}/script\textgreater{}\textless{}img src=x onerror=alert(1)\textgreater{}" in tables["models"]
    assert r"{2.0 \% [0.0, 4.0]}" in tables["models"]
    assert r"{50.0 \% [30.0, 70.0]}" in tables["transfer"]
    assert "38.5" in tables["claims"]


def test_a_table_of_many_rows_may_break():
    cells = tuple((Cell(str(number)), Cell("x", "[0, 1]")) for number in range(31))
    source = latex(ReportTable("many", "x", (Heading("a"), Heading("b", "number")), cells))
    (body,) = re.findall(r"\\begin\{longtable\}\{@\{\}lr@\{\}\}\n(.*)\\end\{longtable\}", source, re.DOTALL)
    assert body.index(r"\label{tab:many}") < body.index(r"\endfirsthead") < body.index(r"\endhead") < body.index("{30}")
    assert body.count("{a}") == body.count("a & b") - 2 == 0, "the heads stand on the first page and on every other"
    assert (body.count(r"\midrule"), body.count(r"\bottomrule")) == (2, 1)
    assert r"\begin{table}" not in source
    assert r"\begin{table}" in latex(ReportTable("few", "x", (Heading("a"), Heading("b", "number")), cells[:30]))


def test_a_bracket_after_a_row_is_not_its_spacing():
    table = ReportTable("x", "x", (Heading("a"), Heading("b")), ((Cell("[1, 2]"), Cell("")),))
    assert "{[1, 2]} & {} \\\\" in latex(table)
    assert_compiles(latex(table))


def test_figures_are_those_of_the_parts(study):
    names = {path.name for path in (study / "paper").glob("*.pdf")}
    assert {"analysis-steps-accuracy.pdf", "landscape-median.pdf", "attacks-accuracy.pdf", "audit-checks.pdf"} <= names
    assert (study / "paper" / "landscape-median.pdf").read_bytes() == (
        study / "landscape" / "figures" / "landscape-median.pdf"
    ).read_bytes()
