"""Check the built site: `python docs/site/check.py SITE`.

Every link inside it, with its anchor; the weight of each page; that every public name has an entry; and in headless
Chromium, where there is one with its driver and Selenium, that each page loads without an error and search finds `gae`.
"""

import ast
import shutil
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

HEAVIEST = 500_000  # bytes of a page with its scripts and style sheets, without pictures
BASE = "http://site"


class Page(HTMLParser):
    """Anchors, links, and what is loaded with the page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        if tag == "script" and found.get("src"):
            self.loaded.add(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon"):
            self.loaded.add(found["href"])
        if tag == "img":
            self.links.add(found["src"])


def read(site):
    """address -> Page, and address -> bytes of every file."""
    sizes, pages = {}, {}
    for path in site.rglob("*"):
        if path.is_file():
            address = f"{BASE}/{path.relative_to(site).as_posix()}".removesuffix("index.html")
            sizes[address] = path.stat().st_size
            if path.suffix == ".html":
                pages[address] = Page(path.read_text(encoding="utf-8"))
    return pages, sizes


def faults(pages, sizes):
    """What is wrong with links and weights, a line each."""
    for address, page in pages.items():
        weight = sizes[address]
        for link in page.links | page.loaded:
            target = urljoin(address, link)
            if not target.startswith(BASE):
                if link in page.loaded:
                    yield f"{address} loads {link} from another host"
                continue
            split = urlsplit(target)
            goal = unquote(f"{BASE}{split.path}")
            if goal not in sizes:
                yield f"{address}: no such page: {link}"
            elif goal in pages and unquote(split.fragment) not in pages[goal].anchors:
                yield f"{address}: no such anchor: {link}"
            elif link in page.loaded:
                weight += sizes[goal]
        if weight > HEAVIEST:
            yield f"{address} weighs {weight} bytes"


def public_names(root):
    """The names of `__all__` of the packages that the reference is of; read, not imported."""
    for package in ("kernels", "replay", "agents", "envs", "distributed", "integrations/sb3"):
        path = root / "fastrl" / package / "__init__.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                yield from ast.literal_eval(node.value)


def unexplained(pages, root):
    """Public names without an entry in the reference."""
    known = {
        anchor.rpartition(".")[2] for address, page in pages.items() if "/api/" in address for anchor in page.anchors
    }
    for name in public_names(root):
        if name not in known and not name.endswith(("_reference", "Reference", "Config", "ALGORITHMS", "CLASS_NAMES")):
            yield f"the reference has no {name}"


def in_browser(site, addresses):
    """What the browser's console says of each page, and of a search for gae."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select
    from selenium.webdriver.support.wait import WebDriverWait

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = f"http://127.0.0.1:{server.server_port}"
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        for address in addresses:
            driver.get(address.replace(BASE, own))
            for entry in driver.get_log("browser"):
                if entry["level"] in ("SEVERE", "WARNING"):
                    yield f"{address}: {entry['message']}"
            if not driver.find_elements(By.CSS_SELECTOR, "article h1"):
                yield f"{address} has no heading"
        driver.get(own + "/plots/")
        wait = WebDriverWait(driver, 60)
        benchmark, case, size = wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "#bars select"))
        wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "#bars .row"))
        Select(benchmark).select_by_value("sum_tree")
        wait.until(lambda d: "sum_tree.update" in case.text)
        Select(size).select_by_index(1)
        bars = [row.text for row in driver.find_elements(By.CSS_SELECTOR, "#bars .row")]
        if not any(text.startswith("cpprb: ") for text in bars):
            yield f"the plots show {bars}"
        driver.get(own + "/")
        driver.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]").send_keys("gae")
        found = wait.until(
            lambda d: [x.get_attribute("href") for x in d.find_elements(By.CSS_SELECTOR, ".md-search-result__link")]
        )
        if not any("fastrl.kernels.scans.gae" in href for href in found):
            yield f"search for gae finds {found}"
    finally:
        driver.quit()
        server.shutdown()


def main(site):
    pages, sizes = read(site)
    assert len(pages) > 20, f"{site} has {len(pages)} pages"
    wrong = [*faults(pages, sizes), *unexplained(pages, Path(__file__).resolve().parents[2])]
    print(f"{len(pages)} pages; the heaviest HTML has {max(sizes[address] for address in pages)} bytes")
    if shutil.which("chromedriver"):
        shown = [address for address in pages if not address.endswith("404.html")]
        wrong += in_browser(site, shown)
        print(f"{len(shown)} pages loaded in Chromium, gae searched for")
    else:
        print("skipped: no Chromium and driver here: no page was loaded in a browser")
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
