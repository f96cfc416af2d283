"""Looks at the report's page in Chromium."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import missing
from PIL import Image
from run_folders import write_sweep

from nem_lightning.report import page
from nem_lightning.report.runs import find
from nem_lightning.report.sweep import Sweep


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Run a script in a page in headless Chromium; give the page's elements as text, or a picture of the page."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        missing("no Chromium here")
    folder = tmp_path_factory.mktemp("chromium")

    def show(written: str, script: str = "", screenshot: bool = False) -> str | Image.Image:
        catch = "<script>addEventListener('error', (e) => document.documentElement.dataset.error = e.message)</script>"
        source, picture = folder / "page.html", folder / "page.png"
        written = written.replace("<head>", f"<head>{catch}").replace("</body>", f"<script>{script}</script></body>")
        source.write_text(written, encoding="utf-8")
        command = f"""{chromium} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
            --disable-background-networking --disable-component-update --disable-sync --window-size=1280,3000""".split()
        what = f"--screenshot={picture}" if screenshot else "--dump-dom"
        profile = f"--user-data-dir={folder / 'profile'}"
        process = subprocess.run(
            [*command, profile, what, source.as_uri()], capture_output=True, text=True, timeout=120
        )
        assert process.returncode == 0, process.stderr
        if screenshot:
            with Image.open(picture) as image:
                return image.convert("RGB")
        assert "data-error" not in process.stdout, re.search('data-error="[^"]*"', process.stdout)
        return process.stdout

    return show


def first_in(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.DOTALL)
    assert found is not None, pattern
    return found[1]


def cells(dom: str, table: str) -> list[list[str]]:
    body = first_in(dom, rf'id="{table}".*?<tbody>(.*?)</tbody>')
    rows = (re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in re.findall("<tr.*?</tr>", body, re.DOTALL))
    return [[" ".join(html.unescape(re.sub("<[^>]*>", "", cell)).split()) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> str:
    """The page about the sweep of ``write_sweep``."""
    return page.render(Sweep(find([write_sweep(tmp_path_factory.mktemp("sweep"))])), "A sweep")


class TestBrowser:
    def test_shows_the_numbers(self, browser, written):
        dom = browser(written)
        rows = cells(dom, "configurations")
        assert [row[1:4] for row in rows] == [["2", "3", "0.730 ± 0.036"], ["10", "2 of 3", "0.820 ± 0.028"]]
        assert [row[0] for row in rows] == ["", "★"]
        assert "NonFiniteLoss: the loss is not finite" in cells(dom, "runs")[5][1]

    def test_a_click_sorts_by_number(self, browser, written):
        click = "document.querySelectorAll('#configurations th button')[{}].click();"
        order = [row[1] for row in cells(browser(written, click.format(0)), "configurations")]
        assert order == ["2", "10"]  # not in alphabetical order
        order = [row[1] for row in cells(browser(written, click.format(2) * 2), "configurations")]
        assert order == ["10", "2"]
        assert (
            cells(browser(written, "document.querySelectorAll('#runs th button')[4].click()"), "runs")[5][0] == "failed"
        )

    def test_pointing_at_a_configuration_fades_the_others(self, browser, written):
        point = "document.querySelector('#legend li').dispatchEvent(new Event('pointerenter'))"
        faded = re.findall(r'class="line (\w+) faded"', browser(written, point))
        assert set(faded) == {"c1"}

    def test_a_click_enlarges_a_picture(self, browser, written):
        assert '<dialog id="enlarged" open="">' in browser(written, "document.querySelector('.picture').click()")

    def test_nothing_is_wider_than_a_phone(self, browser, written):
        frame = "document.body.style.width = '380px'; document.title = `${document.body.scrollWidth} wide`"
        assert "<title>380 wide</title>" in browser(written, frame)

    def test_draws_in_its_colours(self, browser, written):
        pixels = np.array(browser(written, screenshot=True)).reshape(-1, 3)
        for variable in ("--c0", "--c1", "--g0", "--good", "--bad"):
            value = first_in(written, rf"{variable}: #(\w+);")
            assert (pixels == [int(value[i : i + 2], 16) for i in (0, 2, 4)]).all(1).sum() > 20, variable
