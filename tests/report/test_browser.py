from __future__ import annotations

import base64
import json
import re
import warnings
from pathlib import Path

import pytest

from sfumato.report import write_page

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()),
        reason="needs Debian's chromium and chromium-driver (apt-get install chromium chromium-driver)",
    ),
]


@pytest.fixture(scope="module")
def browser(cards, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("browser")
    write_page(cards, folder / "page.html")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.get((folder / "page.html").as_uri())
        yield driver
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # selenium leaves its socket to the collector
            driver.quit()


def _view(browser, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.mark.parametrize("width", [320, 390, 720, 1000, 1440])
def test_nothing_sticks_out(browser, width):
    _view(browser, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # What scrolls by itself may be wider inside; everything else has to fit.
    script = """
        const fits = e => e.getBoundingClientRect().right <= innerWidth + 1;
        return [...document.querySelectorAll('main *, header *')]
            .filter(e => !e.closest('.scroll, svg') && getComputedStyle(e).display !== 'none' && !fits(e))
            .map(e => e.outerHTML.slice(0, 80))"""
    assert browser.execute_script(script) == []


@pytest.mark.parametrize("width", [390, 1200])
def test_pictures_and_headings_are_there(browser, width):
    _view(browser, width)
    sizes = browser.execute_script("return [...document.images].map(i => [i.naturalWidth, i.clientWidth])")
    assert len(sizes) == 90
    assert all(natural == 32 and shown >= 48 for natural, shown in sizes)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map(h => h.getBoundingClientRect().height)"
    )
    assert len(heights) > 15
    assert all(height > 0 for height in heights)
    plots = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert sorted(width > 0 for width in plots) == [False, True]


@pytest.mark.parametrize(("width", "columns"), [(320, 4), (390, 4), (600, 8), (720, 8), (1200, 8)])
def test_the_line_up_stands_in_even_columns(browser, width, columns):
    _view(browser, width)
    script = """return [...document.querySelectorAll('.lineup tr')].map(row =>
        [...row.querySelectorAll('img')].map(i => i.getBoundingClientRect()).map(b => [b.left, b.width]))"""
    first, *others = browser.execute_script(script)
    assert len(others) == 5
    assert all(row == first for row in others)
    assert len({round(left) for left, _ in first}) == columns
    assert max(size for _, size in first) - min(size for _, size in first) < 0.5
    assert 48 <= first[0][1] <= 104


def _luminance(color: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(browser, scheme):
    _view(browser, 1200, scheme)
    script = """const seen = new Set();
        for (const e of document.querySelectorAll('main *, header *, footer *')) {
            if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
            let b = e;
            while (b && getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
            seen.add(getComputedStyle(e).color + '|' + getComputedStyle(b || document.body).backgroundColor);
        } return [...seen]"""
    pairs = browser.execute_script(script)
    assert len(pairs) > 4
    for pair in pairs:
        text, ground = sorted((_luminance(color) for color in pair.split("|")), reverse=True)
        assert (text + 0.05) / (ground + 0.05) >= 4.5, pair


def test_the_plot_follows_the_dark(browser):
    inks = []
    for scheme in ("light", "dark"):
        _view(browser, 1200, scheme)
        inks.append(browser.execute_script("return getComputedStyle(document.querySelector('.wide text')).fill"))
    assert _luminance(inks[0]) < 0.2 < 0.4 < _luminance(inks[1])


def test_keyboard_reaches_the_verdict_first(browser):
    from selenium.webdriver.common.keys import Keys

    _view(browser, 1200)
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    assert browser.execute_script("return document.activeElement.getAttribute('href')") == "#verdict"


def test_it_prints(browser):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 1


def test_it_asks_for_nothing_and_complains_of_nothing(browser):
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    addresses = [request["request"]["url"] for request in sent if request["documentURL"].startswith("file:")]
    assert addresses
    assert all(address.startswith(("file:", "data:")) for address in addresses)
    assert sum(address.startswith("file:") for address in addresses) == 1


@pytest.fixture(scope="module")
def crowded(browser, card, attack, tmp_path_factory):
    """A page of models with many attacks under long labels, with curves; opened after all tests of the other page."""
    noise = [("bottleneck", {"channels": 8}), ("noise", {"sigma": 0.1})]

    def model(name, parts, ssim, gain):
        made = [
            attack(
                f"decoder (images={owned}, observations={k})", observations=k, images=owned, queries=50 * k * owned,
                ssim=ssim + gain * k / 16, mse=0.02 - gain * k / 1600, epochs=50, width=64,
            )
            for k in (1, 4, 16) for owned in (100, 45000)
        ]  # fmt: skip
        return card(name, parts, attacks=[*made, attack("rmle", ssim=ssim, spread=0.3, steps=2000)])

    cards = [
        model("None", None, 0.7, 0.0),
        model("Noise", noise, 0.5, 0.15),
        model("Noise_ARL + CEM", [*noise, ("cem", {"weight": 16})], 0.35, 0.05),
    ]
    path = tmp_path_factory.mktemp("crowded") / "page.html"
    write_page(cards, path)
    browser.get(path.as_uri())
    return browser


@pytest.mark.parametrize("width", [320, 390, 720, 1000, 1440])
def test_many_attacks_stick_out_nowhere(crowded, width):
    test_nothing_sticks_out(crowded, width)


@pytest.mark.parametrize(("width", "shown"), [(390, "narrow"), (1200, "wide")])
def test_curves_are_shown_once_and_inside_their_figure(crowded, width, shown):
    _view(crowded, width)
    script = """return [...document.querySelectorAll('#attacks figure svg')].map(s =>
        [s.parentElement.className, s.getBoundingClientRect().width > 0])"""
    found = crowded.execute_script(script)
    assert len(found) == 2 * 5  # observations at two sizes of what is owned, pictures at three of observations
    assert all(visible == (name == shown) for name, visible in found)
    script = """return [...document.querySelectorAll('#attacks figure svg')].filter(s => s.clientWidth).flatMap(s =>
        [...s.querySelectorAll('text')].map(t => t.getBoundingClientRect()).filter(b => b.right > innerWidth).length)"""
    assert sum(crowded.execute_script(script)) == 0


def test_a_table_by_attack_is_a_list_of_named_figures_on_a_phone(crowded):
    _view(crowded, 390)
    script = """return [...document.querySelectorAll('.attacks td')].map(d => [
        getComputedStyle(d).display, getComputedStyle(d, '::before').content])"""
    cells = crowded.execute_script(script)
    assert len(cells) == 3 * 7 * 12
    assert all(display == "flex" and len(title) > 2 for display, title in cells)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_with_many_attacks(crowded, scheme):
    test_contrast_is_enough(crowded, scheme)
