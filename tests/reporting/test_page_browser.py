"""The page in a browser: nothing goes wrong, and what a reader presses works."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: chromium is not on the PATH")


def ask(page: Path, work: Path, script: str, *, is_allowed: bool = True) -> tuple[dict[str, object], str]:
    """What ``script``, which calls ``answer``, says in the page, and what the browser complained of."""
    script = "const answer = (value) => { document.body.dataset.answer = JSON.stringify(value); };\n" + script
    text = page.read_text()
    if is_allowed:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    work.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    profile = work.parent / "profile"
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", work.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.search(r'<body[^>]* data-answer="([^"]*)"', done.stdout)
    answer = json.loads(html.unescape(found[1])) if found else {}
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "willReadFrequently" not in line]
    return answer, "\n".join(complaints)


def test_theme_and_sorting_work_by_hand_and_key(study, tmp_path):
    script = """
    const root = document.documentElement;
    const theme = document.getElementById("theme");
    const before = getComputedStyle(document.body).backgroundColor;
    theme.click();
    const dark = [root.dataset.theme, getComputedStyle(document.body).backgroundColor !== before, theme.textContent];
    theme.click();
    const head = document.querySelector("#table-2 th.number");
    const lines = () => [...document.querySelectorAll("#table-2 tbody tr")].map((row) => row.cells[0].textContent);
    const orders = [[head.getAttribute("aria-sort"), lines()]];
    for (let times = 0; times < 2; times += 1) {
      head.querySelector("button").click();
      orders.push([head.getAttribute("aria-sort"), lines()]);
    }
    const text = document.querySelector("#table-2 th");
    text.querySelector("button").focus();
    const isReached = document.activeElement === text.querySelector("button");
    for (let times = 0; times < 2; times += 1) text.querySelector("button").click();
    orders.push([text.getAttribute("aria-sort"), head.getAttribute("aria-sort"), lines()]);
    answer({ dark, light: root.dataset.theme, orders, isReached });
    """
    found, complaints = ask(study / "report.html", tmp_path / "page.html", script)
    assert complaints == ""
    assert found["dark"] == ["dark", True, "Light"]
    assert found["light"] == "light"
    assert found["isReached"]
    assert found["orders"] == [
        ["none", ["C1", "C2"]],
        ["ascending", ["C1", "C2"]],
        ["descending", ["C1", "C2"]],
        ["descending", "none", ["C2", "C1"]],
    ]


def test_saving_gives_the_file_and_surfaces_are_drawn_when_opened(study, tmp_path):
    script = """
    (async () => {
      const saved = [];
      HTMLAnchorElement.prototype.click = function () { saved.push([this.download, this.href]); };
      const before = typeof Plotly;
      const page = document.documentElement;
      const wide = page.scrollWidth - page.clientWidth;
      for (const name of ["attack-attacks.csv", "models.csv"]) {
        document.querySelector(`button.save[data-name="${name}"]`).click();
        while (saved.length < 1 + (name === "models.csv")) await new Promise((done) => setTimeout(done, 20));
      }
      const surface = document.querySelector("details.surfaces");
      surface.open = true;
      const drawn = () => surface.querySelectorAll(".plot canvas").length;
      while (drawn() < 2) await new Promise((done) => setTimeout(done, 50));
      const views = [...surface.querySelectorAll("option")].map((option) => option.textContent);
      const names = [...surface.querySelectorAll("figcaption")].map((caption) => caption.textContent);
      const message = surface.querySelector(".message").textContent;
      answer({ saved: saved.map(([name]) => name), before, wide, views: views.length, names, message });
    })();
    """
    found, complaints = ask(study / "report.html", tmp_path / "page.html", script)
    assert complaints == ""
    assert found["saved"] == ["attack-attacks.csv", "models.csv"]
    assert found["before"] == "undefined"
    assert found["wide"] == 0
    assert found["views"] == 2
    assert found["names"] == ["</script><img src=x onerror=alert(1)>", "\"&'<!--{{ 7 * 7 }}"]


def test_a_script_that_is_not_the_page_s_own_does_not_run(study, tmp_path):
    found, complaints = ask(study / "report.html", tmp_path / "page.html", "answer({ ran: true });", is_allowed=False)
    assert found == {}
    assert "Content Security Policy" in complaints
