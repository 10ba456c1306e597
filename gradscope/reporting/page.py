"""Write ``report.html``: one page of everything in a directory of results, which loads nothing from outside."""

import base64
import gzip
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from markupsafe import Markup, escape

import gradscope
from gradscope.figures.rendering import render, script_json, source
from gradscope.reporting.contents import Contents, read_contents
from gradscope.reporting.headline import headline
from gradscope.reporting.paper import write_paper
from gradscope.reporting.provenance import making, manifests
from gradscope.reporting.sections import Section, sections
from gradscope.results.files import atomic, ensure_writable
from gradscope.results.manifest import MANIFEST
from gradscope.results.schemas import AUDIT_JSON, CLAIMS, PAGE
from gradscope.results.tables import file_content, find_table, find_tables

_CODE = re.compile(r"\b([A-Z]\d)\b")
#: Files of up to this many bytes are in the page; larger ones are only named.
LARGEST = 1_000_000


@dataclass(frozen=True)
class Attached:
    """A file of the results. ``content``: compressed, in base64; empty if the page only names it."""

    path: str
    address: str
    size: int
    content: str


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into ``directory`` and the files for a paper into ``paper/``; return the page's path.

    Raises :class:`GradscopeError` where there are no results, a file is damaged, or ``directory`` is not writable.
    """
    if directory.is_dir():
        ensure_writable(directory, "directory")
    contents = read_contents(directory)
    chapters = sections(contents)
    text = page(contents, chapters)
    path = directory / PAGE
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_paper(contents)
    return path


def page(contents: Contents, chapters: list[Section]) -> str:
    """Return the page of ``contents``; the same contents give the same bytes."""
    surfaces = [block.surface for chapter in chapters for block in chapter.blocks if block.surface]
    script = source("reporting/templates/page.js")
    if surfaces:
        script = Markup(source("figures/templates/surfaces.js") + script)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "reporting/templates/page.html",
        # Drawing surfaces makes functions from text, which the browser allows only where it is told so.
        allowed=Markup(f"'sha256-{digest}'" + (" 'unsafe-eval'" if surfaces else "")),
        contents=contents,
        headline=headline(contents),
        chapters=chapters,
        checks=_anchors(chapters, "check"),
        claims=_anchors(chapters, "claim"),
        coded=coded,
        making=making(contents),
        manifests=manifests(contents),
        files=list(_files(contents)),
        style=source("reporting/templates/page.css"),
        script=script,
        plotly=_plotly() if surfaces else "",
        script_json=script_json,
        version=gradscope.__version__,
    )


def _anchors(chapters: Iterable[Section], kind: Literal["check", "claim"]) -> dict[str, str]:
    """Return each code of a check or claim that the page explains, and its anchor."""
    blocks = [block for chapter in chapters for block in chapter.blocks]
    if kind == "check":
        return {code: f"check-{code}" for block in blocks for code in block.meanings}
    found = [claim for block in blocks for forest in block.forests for claim in forest.claims]
    return {claim.code: claim.anchor for claim in reversed(found)}


def coded(text: str, anchors: Mapping[str, str]) -> Markup:
    """Escape ``text`` and link each of its codes, such as N1, to the code's meaning."""
    pieces = _CODE.split(text)
    return Markup("").join(
        Markup('<a class="code" href="#{}">{}</a>').format(anchors[piece], piece) if piece in anchors else escape(piece)
        for piece in pieces
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs().encode())


def _packed(content: bytes) -> str:
    """Compress and encode in base64; the same content gives the same text."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _files(contents: Contents) -> Iterator[Attached]:
    """Yield the tables and the files for programs, part by part; a compressed table is attached unpacked."""
    folders = [("", contents.directory), *((part.name, part.directory) for part in contents.parts if part.name)]
    own = any(not part.name for part in contents.parts)
    for name, folder in folders:
        tables = find_tables(folder) if name or own else [find_table(folder / CLAIMS.file)]
        for path in [*tables, folder / AUDIT_JSON, folder / MANIFEST]:
            if path and path.is_file():
                content = file_content(path)
                where = f"{name}/{path.name}" if name else path.name
                address = f"./{quote(where)}"
                if len(content) <= LARGEST:
                    yield Attached(where.removesuffix(".gz"), address, len(content), _packed(content))
                else:
                    yield Attached(where, address, path.stat().st_size, "")
