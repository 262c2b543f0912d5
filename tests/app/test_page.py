"""The page of `dpn.report` in a real browser."""

import json
import shutil

import pytest

from dpn.reports.comparison import compare
from dpn.reports.publish import write_comparison
from tests.app.run_folders import set_status, write_run, write_sweep

pytestmark = pytest.mark.slow

#: Contrast (WCAG 2.2) of each text to what is behind it, the lowest first.
CONTRASTS = """
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, n) => {
  const v = c[n] / 255;
  return sum + weight * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
}, 0);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
  if (!text || !element.checkVisibility() || element.closest("script, noscript, .mark")) continue;
  const style = getComputedStyle(element);
  const ink = light(parse(element instanceof SVGElement ? style.fill : style.color));
  const paper = light(behind(element));
  const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  found.push([ratio, text.slice(0, 40)]);
}
return found.sort((a, b) => a[0] - b[0]);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = write_sweep(tmp_path_factory.mktemp("sweep"))
    set_status(write_run(root / "failed", seed=7), "failed", error="ValueError: a<b " + "x" * 90)
    (write_run(root / "damaged", seed=8) / "rows.jsonl").write_text('{"cut')
    return write_comparison(compare([root]), root / "report")


@pytest.fixture(scope="module")
def chromium():
    from selenium import webdriver

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("there is no chromium with chromedriver; `make browser` installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def shown(chromium, page):
    """The page, opened as a file."""
    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.get(page.as_uri())
    return chromium


def column(browser, table, number):
    script = "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map("
    script += "row => row.hidden ? null : row.cells[arguments[1]].textContent)"
    return browser.execute_script(script, table, number)


def visible_traces(browser, chart):
    script = "return document.getElementById(arguments[0]).data.filter("
    script += "trace => trace.visible).map(trace => trace.name)"
    return browser.execute_script(script, chart)


def test_opens_without_errors_and_without_network(shown):
    drawn = shown.execute_script("return document.querySelectorAll('.chart .main-svg').length")
    assert drawn >= 4
    assert [entry for entry in shown.get_log("browser") if entry["level"] != "INFO"] == []
    events = (json.loads(entry["message"])["message"] for entry in shown.get_log("performance"))
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == NETWORK]
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


NETWORK = "Network.requestWillBeSent"


def test_a_method_can_be_hidden_and_shown_again(shown):
    (box,) = shown.find_elements("css selector", ".filter input[value='router=static']")
    before = column(shown, "#methods table", 0)
    assert "router=static keep=0.4" in before
    box.click()
    assert column(shown, "#methods table", 0)[-1] is None
    for chart in ("accuracy_macs", "accuracy_time", "kept", "curve_loss_language"):
        names = visible_traces(shown, chart)
        assert names
        assert not [name for name in names if "static" in name]
    box.click()
    assert column(shown, "#methods table", 0) == before
    assert "router=static" in visible_traces(shown, "accuracy_macs")


def test_a_point_tells_what_it_is(shown):
    script = "Plotly.Fx.hover('accuracy_macs', [{curveNumber: 1, pointNumber: 0}]);"
    script += "return document.querySelector('#accuracy_macs .hoverlayer').textContent"
    assert "router=dpe keep=0.5: accuracy 0.750" in shown.execute_script(script)


def test_columns_are_sorted_by_value(shown):
    heads = shown.find_elements("css selector", "#methods table:first-of-type thead button")
    (accuracy,) = (head for head in heads if head.text == "accuracy")
    for reverse in (False, True):
        accuracy.click()
        values = [float(cell.split()[0]) for cell in column(shown, "#methods .scroll table", 2)[:4]]
        assert values == sorted(values, reverse=reverse)
    state = shown.execute_script("return arguments[0].closest('th').ariaSort", accuracy)
    assert state == "descending"


def test_nothing_is_wider_than_a_phone(shown):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    shown.get(shown.current_url)
    script = "return [innerWidth, document.documentElement.scrollWidth]"
    assert shown.execute_script(script) == [390, 390]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme, shown):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    paper = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    found = shown.execute_script(CONTRASTS)
    assert len(found) > 100
    assert found[0][0] >= 4.5, found[:5]
