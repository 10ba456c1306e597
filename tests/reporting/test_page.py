"""The page: whole, safe whatever names stand in it, asking for nothing, the same bytes twice."""

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gradscope.errors import GradscopeError
from gradscope.reporting.page import LARGEST, write_report

HOSTILE = ("</script><img src=x onerror=alert(1)>", "\"&'<!--{{ 7 * 7 }}")
CHAPTERS = ["trajectories", "landscapes", "transfer", "attacks", "audit", "entropy", "claims"]
LOADING = ("src", "srcset", "data", "poster", "action", "background", "ping")


class Tags(HTMLParser):
    """Tags with their attributes, texts outside of scripts and styles, and the content of those."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.scripts.append((dict(attributes), ""))

    def handle_data(self, data):
        if self.cdata_elem:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def parsed(directory: Path) -> Tags:
    tags = Tags()
    tags.feed((directory / "report.html").read_text())
    return tags


@pytest.fixture(scope="module")
def tags(study: Path) -> Tags:
    return parsed(study)


def test_the_chapters_stand_in_order(tags):
    assert [attributes["id"] for attributes in tags.of("header", "section")] == [
        "summary",
        *CHAPTERS,
        "making",
        "files",
    ]
    linked = [str(attributes["href"]) for attributes in tags.of("a") if str(attributes["href"]).startswith("#")]
    assert linked[: len(CHAPTERS) + 3] == [f"#{name}" for name in ("summary", *CHAPTERS, "making", "files")]
    anchors = {f"#{attributes['id']}" for _, attributes in tags.tags if "id" in attributes}
    assert set(linked) <= anchors


def test_nothing_is_loaded_from_anywhere(tags):
    addresses = [attributes[name] for _, attributes in tags.tags for name in LOADING if name in attributes]
    assert addresses
    assert all(str(address).startswith("data:image/") for address in addresses)
    assert not tags.of("link", "iframe", "object", "embed", "base", "form", "audio", "video")
    links = [str(attributes["href"]) for _, attributes in tags.tags if "href" in attributes]
    assert all(link.startswith(("#", "./")) for link in links)
    assert not [content for _, content in tags.scripts if re.search(r"@import|url\(", content)]


def test_the_policy_forbids_network_and_other_scripts(tags):
    (policy,) = [known["content"] for known in tags.of("meta") if known.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().partition(" ")[::2] for rule in str(policy).split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert not re.search(r"http|\*|'self'|blob: *script", str(policy))
    assert "'unsafe-inline'" not in rules["script-src"]
    run = [content for attributes, content in tags.scripts if "type" not in attributes and "querySelector" in content]
    assert len(run) == 1
    digest = base64.b64encode(hashlib.sha256(run[0].encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}' 'unsafe-eval'"
    assert rules.keys() == {"default-src", "script-src", "style-src", "img-src", "font-src", "base-uri", "form-action"}


def test_no_name_becomes_markup(tags, study):
    assert not [attributes for _, attributes in tags.tags if any(name.startswith("on") for name in attributes)]
    assert {attributes["alt"] is not None for attributes in tags.of("img")} == {True}
    assert all(str(attributes["src"]).startswith("data:") for attributes in tags.of("img"))
    for name in HOSTILE:
        assert name in tags.text
        assert name not in (study / "report.html").read_text()
    assert "a & b's <study>" in tags.text
    assert "49" not in re.findall(r"<!--(.*?)\}", tags.text)


def test_data_for_scripts_is_json_that_ends_nothing(tags):
    (payload,) = [content for attributes, content in tags.scripts if attributes.get("type") == "application/json"]
    assert "<" not in payload
    found = json.loads(payload)
    assert found["scenes"] == list(HOSTILE)
    assert found["views"][1]["name"] == f"image 7, class 1, {HOSTILE[0]}"


def test_plotly_is_there_once_and_only_where_there_is_a_landscape(tags, study, tmp_path):
    packed = [content for attributes, content in tags.scripts if attributes.get("id") == "plotly"]
    assert len(packed) == 1
    assert b"Plotly" in gzip.decompress(base64.b64decode(packed[0]))
    for part in ("attack", "transfer"):
        shutil.copytree(study / part, tmp_path / part)
    write_report(tmp_path)
    found = parsed(tmp_path)
    assert not [attributes for attributes, _ in found.scripts if attributes.get("id") == "plotly"]
    (policy,) = [str(known["content"]) for known in found.of("meta") if "http-equiv" in known]
    assert "eval" not in policy


def test_surfaces_name_their_figures_on_paper(make_study):
    root = make_study("landscape")
    write_report(root)
    found = parsed(root)
    (number,) = re.findall(r"On paper: figure (\d+), and the contours", found.text)
    assert re.search(rf"Figure {number}\. Median over n = \d+ images of [^;]* as a surface;", found.text)


def test_the_first_screen_says_what_was_found_and_one_bound_for_each_model(tags):
    heading = tags.text.index(
        f"Under the paper's attack {HOSTILE[0]} keeps 40 %, under an exact one 2 %: the difference"
    )
    table = tags.text.index("Table 1.")
    assert heading < tags.text.index("The bar ends at the lowest accuracy") < table
    assert "2.0 % [0.0, 4.0], n = 40, pgd" in tags.text[table:]
    assert "The audits find" not in tags.text[:heading]
    assert "The audits find gradient masking in 2 of 2 models." in tags.text[heading:table]
    assert "0 of 1 tests of the paper's claims (C) hold." in tags.text[heading:table]
    assert f"{HOSTILE[0]}: believe the lower (N3 loss)." in tags.text


def test_few_words_stand_before_the_first_figure(tags, study):
    text = (study / "report.html").read_text()
    before = text[text.index("<main>") : text.index("<figure")]
    words = re.sub(r"<[^>]+>", " ", before).split()
    assert 20 < len(words) <= 120


def test_the_chart_has_a_line_for_each_model_that_says_its_values(tags):
    lines = [str(attributes["aria-label"]) for attributes in tags.of("div") if attributes.get("role") == "listitem"]
    assert [line.partition(": ")[0] for line in lines] == list(HOSTILE)
    clean, paper, exact, bound = lines[0].partition(": ")[2].split("; ")
    assert clean == "clean 90.0 % [88.0, 92.0], 40 images"
    assert paper == "the paper's attack 40.0 % [38.0, 42.0], 40 images"
    assert exact == "exact PGD 2.0 % [0.0, 4.0], 40 images"
    assert bound == "at most (pgd) 2.0 % [0.0, 4.0], 40 images"


def test_codes_are_links_to_their_meaning(tags):
    assert "N3 loss Fires when PGD on another loss, or in float64, fools more images" in tags.text
    links = [attributes["href"] for attributes in tags.of("a") if attributes.get("class") == "code"]
    assert {"#check-N3", "#claim-C2-2"} == set(links)


def test_each_claim_opens_into_its_tests(tags):
    claims = [attributes["id"] for attributes in tags.of("details") if attributes.get("class") == "claim"]
    assert claims == ["claim-C1", "claim-C2-2"]
    assert "0 of 1 tests hold" in tags.text
    assert "no effect measured" in tags.text
    assert "+38.5" not in tags.text, "the paper's figure is not of digits"


def test_what_is_incomplete_or_missing_is_said(tags, make_study):
    assert "attack is incomplete: the run was interrupted" in tags.text
    root = make_study("analysis", "transfer")
    (root / "transfer" / "manifest.json").unlink()
    (root / "analysis" / "summary.csv").unlink()
    (root / "late").mkdir()
    (root / "late" / "manifest.json").write_text("{}")
    (root / "manifest.json").write_text('{"complete": false}')
    write_report(root)
    text = parsed(root).text
    for said in (
        "The study is incomplete",
        "transfer has no manifest.json",
        "late holds a manifest.json but no results yet",
        "No audit is among these results",
    ):
        assert said in text


def stage(label: str, state: str, **facts: object) -> dict[str, object]:
    kind, _, name = label.partition("-")
    return {"label": label, "kind": kind, "place": f"results/{name}", "state": state, **facts}


def test_a_study_shows_its_own_parts_by_kind_and_says_what_is_lacking(make_study):
    root = make_study("attack", "transfer", "audit")
    (root / "attack").rename(root / "zeta")
    (root / "transfer").rename(root / "alpha")
    (root / "audit").rename(root / "of-another-recipe")
    where = {"host": "node <7>", "device": "H100", "threads": 16}
    manifest = {
        "kind": "study",
        "study": "tiny",
        "complete": False,
        "seconds": 61.5,
        "absent": {"data": {"cifar10": "data_root: it is not there"}, "stages": ["model-cifar10-sl-s0"]},
        "stages": [
            stage("model-sl-s0", "done", seconds=60.0, when="2026-01-02T03:04:05+00:00", where=where),
            stage("model-rl-s0", "failed", error="RuntimeError: no <luck>", log=".stages/model-rl-s0.log"),
            stage("measure-alpha", "done", seconds=1.5, where=where),
            stage("measure-zeta", "done", where=where),
            stage("measure-late", "blocked", blocked_by=["model-rl-s0"]),
            stage("measure-waiting", "to do"),
            stage("claims", "to do"),
        ],
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    write_report(root)
    found = parsed(root)
    assert [attributes["id"] for attributes in found.of("section")] == [
        *("transfer", "attacks", "claims", "making", "files")
    ]
    for said in (
        "The study is incomplete: its manifest.json says so.",
        "The images of cifar10 are absent (data_root: it is not there). Stages that did not run: model-cifar10-sl-s0.",
        "model-rl-s0 failed: RuntimeError: no <luck> (see .stages/model-rl-s0.log).",
        "measure-late did not start: it needs model-rl-s0.",
        "measure-waiting is still to be done.",
        "of-another-recipe does not belong to this study and is left out.",
        "The stages of the study tiny, 62 seconds of work in all",
        "node <7>",
        "2026-01-02 03:04:05",
    ):
        assert said in found.text
    assert "claims is still" not in found.text
    assert "<luck>" not in (root / "report.html").read_text()


def test_every_figure_has_its_caption_and_its_file(tags, study):
    captions = {path.parent.parent.name: json.loads(path.read_text()) for path in study.glob("*/figures/captions.json")}
    names = [(part, name) for part, known in captions.items() for name in known]
    assert len([figure for figure in tags.of("figure") if str(figure.get("id")).startswith("figure-")]) == len(names)
    hrefs = [str(attributes["href"]) for attributes in tags.of("a")]
    for part, name in names:
        assert " ".join(captions[part][name].split()) in tags.text
        assert f"./{part}/figures/{name}.pdf" in hrefs
        assert (study / part / "figures" / f"{name}.pdf").exists()


def test_a_gif_beside_a_figure_is_linked(make_study):
    root = make_study("landscape")
    write_report(root)
    names = [f"./landscape/figures/landscape-image-7.{kind}" for kind in ("pdf", "gif")]
    assert [attributes["href"] for attributes in parsed(root).of("a") if attributes["href"] in names] == names[:1]
    (root / "landscape" / "figures" / "landscape-image-7.gif").write_bytes(b"GIF89a")
    write_report(root)
    assert [attributes["href"] for attributes in parsed(root).of("a") if attributes["href"] in names] == names


def test_captions_are_those_of_the_file(make_study):
    root = make_study("attack")
    write_report(root)
    path = root / "attack" / "figures" / "captions.json"
    path.write_text(json.dumps({"attacks-accuracy": "Written by hand <b>; and more."}))
    write_report(root)
    assert "Written by hand <b>; and more." in parsed(root).text


def test_tables_have_heads_to_sort_by_and_numbers_know_their_value(tags):
    heads = [attributes for attributes in tags.of("th") if "aria-sort" in attributes]
    assert heads
    assert all(attributes["aria-sort"] == "none" and attributes["scope"] == "col" for attributes in heads)
    keys = [str(attributes["data-key"]) for attributes in tags.of("td") if "data-key" in attributes]
    assert {"0.9", "0.1", "-2.5"} <= set(keys)
    assert all(float(key) == float(key) for key in keys)


def test_files_are_attached_and_large_ones_named(tags, study, make_study):
    attached = {
        attributes["id"]: content for attributes, content in tags.scripts if "file-" in str(attributes.get("id"))
    }
    buttons = [attributes for attributes in tags.of("button") if "data-file" in attributes]
    assert len(buttons) == len(attached)
    (steps,) = [button for button in buttons if button["data-name"] == "analysis-steps.csv"]
    content = gzip.decompress(base64.b64decode(attached[steps["data-file"]]))
    assert content == (study / "analysis" / "steps.csv").read_bytes()
    assert {"claims.csv", "audit-audit.json", "manifest.json"} <= {button["data-name"] for button in buttons}
    root = make_study("attack")
    (root / "attack" / "large.csv").write_text("1\n" * LARGEST)
    write_report(root)
    found = parsed(root)
    assert "attack-large.csv" not in [attributes.get("data-name") for attributes in found.of("button")]
    assert "./attack/large.csv" in [attributes.get("href") for attributes in found.of("a")]


def test_a_page_of_compressed_tables_is_the_same_but_for_their_addresses(make_study):
    root = make_study("attack", "transfer", "audit")
    first = write_report(root).read_text()
    tables = sorted(root.rglob("*.csv"))
    assert len(tables) >= 5
    for path in tables:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=1))
        path.unlink()
    second = write_report(root).read_text()
    assert second != first
    assert second.replace('.csv.gz"', '.csv"') == first


def test_one_directory_of_results_is_a_report_too(make_results, tmp_path):
    root = make_results(checkpoints=(("sl-0", "sl"),), attacks=("pgd",), step_metrics=("cosine",), sample_metrics=())
    write_report(root)
    assert [attributes["id"] for attributes in parsed(root).of("section")] == ["trajectories", "making", "files"]
    assert (root / "paper" / "steps-cosine.pdf").exists()


def test_writing_again_gives_the_same_bytes_and_leaves_figures_alone(make_study):
    root = make_study("transfer", "attack")
    page = write_report(root)
    first = page.read_bytes()
    drawn = {path: path.stat().st_mtime_ns for path in root.glob("*/figures/*")}
    assert write_report(root).read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/figures/*")} == drawn
    assert not list(root.glob(".*"))


def test_a_missing_figure_is_drawn(make_study):
    root = make_study("attack")
    write_report(root)
    figure = root / "attack" / "figures" / "attacks-accuracy.pdf"
    figure.unlink()
    write_report(root)
    assert figure.exists()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("attack/attacks.csv", "checkpoint\nx\n", "lacks the columns"),
        ("attack/manifest.json", "[1]", "it must hold a JSON object, got list"),
        ("attack/manifest.json", '{"checkpoints": 3}', "is damaged: checkpoints"),
        ("audit/audit.json", "{", "audit.json is not JSON"),
        ("claims.csv", "claim\nC1\n", "lacks the columns"),
        ("manifest.json", "\x00", "is not JSON"),
        ("landscape/landscape.csv", None, "is incomplete"),
    ],
)
def test_damage_is_one_line_and_no_page(make_study, file, content, said):
    root = make_study(file.partition("/")[0] if "/" in file else "attack")
    path = root / file
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) if content is None else content)
    with pytest.raises(GradscopeError, match=re.escape(said)) as caught:
        write_report(root)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("directory")
    assert not (root / "report.html").exists()


def test_captions_that_are_no_json_are_one_line(make_study):
    root = make_study("attack")
    write_report(root)
    (root / "attack" / "figures" / "captions.json").write_text("{")
    with pytest.raises(GradscopeError, match=r"captions\.json is not JSON"):
        write_report(root)


def test_nothing_and_nowhere_are_refused(tmp_path):
    with pytest.raises(GradscopeError, match="sub-directories are, got"):
        write_report(tmp_path)
    with pytest.raises(GradscopeError, match="which is not a directory"):
        write_report(tmp_path / "no")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_directory_is_the_users_mistake(make_study, monkeypatch):
    root = make_study("attack")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("gradscope.results.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(GradscopeError, match=r"^directory: .* is not writable: Permission denied"):
        write_report(root)
