import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from starlette.testclient import TestClient

from flambeau.app.board import BODY_LIMIT, Board


@pytest.fixture
def client(tmp_path):
    return TestClient(Board(tmp_path).app, base_url="http://localhost")


def test_pages_of_the_catalog(client):
    index = client.get("/")
    assert index.status_code == 200 and index.text.count('class="card') >= 74
    assert 'src="http' not in index.text
    assert client.get("/papers/sjd").status_code == 200
    assert "not part of this version" in client.get("/papers/tnt").text
    assert client.get("/papers/nothing").status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"preset": "huge"}', 400),
        (b'{"seed": -1}', 400),
        (b'{"seed": "1; rm"}', 400),
        (b'{"overrides": ["--out=/etc"]}', 400),
        (b'{"overrides": "window=1"}', 400),
        (b'{"overrides": [3]}', 400),
        (b"x" * (BODY_LIMIT + 1), 413),
    ],
)
def test_bad_requests_start_nothing(client, tmp_path, body, status):
    assert client.post("/papers/sjd/runs", content=body).status_code == status
    assert not list(tmp_path.rglob("*"))


def test_other_sites_and_hosts_are_refused(client, tmp_path):
    assert client.post("/papers/sjd/runs", json={}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["..", "%2e%2e", "2026-01-01_00-00-00", "..%2f..%2fetc"])
def test_run_names_lead_nowhere_else(client, name):
    for page in ("report.html", "events", "figures/a.png"):
        assert client.get(f"/runs/sjd/{name}/{page}").status_code == 404


def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("the board's tests need a browser: apt-get install chromium")
        pytest.skip("needs a browser: apt-get install chromium")
    return path


@pytest.fixture
def address(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "flambeau", "board", "--port", str(port), "--runs", str(tmp_path / "runs")]
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(150):
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=15)


def test_find_open_run_watch_and_see_a_paper_in_a_browser(address, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra web: pip install 'flambeau[web]'")
    with sync_api.sync_playwright() as play:
        quiet = [
            "--no-sandbox",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-quic",
        ]
        browser = play.chromium.launch(executable_path=chromium(), args=quiet)
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        assert page.locator(".card:visible").count() == 74
        page.get_by_role("searchbox").fill("case-based prototypes")
        assert page.locator(".card:visible").count() == 1
        page.get_by_role("searchbox").fill("")
        page.get_by_label("Family").select_option("search")
        assert 0 < page.locator(".card:visible").count() < 74
        page.get_by_label("Family").select_option("")
        page.get_by_label("runs here").check()
        page.locator(".card:visible", has_text="Case-Based Reasoning").get_by_role("link").click()
        page.get_by_label("preset").select_option("smoke")
        page.get_by_label("seed").fill("3")
        page.get_by_role("button", name="Run").click()
        finished = page.get_by_text("Finished in")
        finished.wait_for(timeout=120_000)
        assert page.locator("#outcome tr").count() > 2
        image = page.locator("#outcome figure img").first
        image.scroll_into_view_if_needed()
        page.wait_for_function("e => e.complete && e.naturalWidth > 100", arg=image.element_handle())
        page.get_by_text("the whole report").click()
        assert page.locator("h1").inner_text().startswith("Deep Learning for Case-Based Reasoning")
        page.goto(f"{address}/papers/prototype_reasoning")
        assert page.get_by_text("seed 3").count() == 1
        page.get_by_label("changes").fill("prototyps=3")
        page.get_by_role("button", name="Run").click()
        page.get_by_text("Failed:").wait_for(timeout=60_000)
        assert "prototypes" in page.locator("#state").inner_text()
        assert errors == []
        browser.close()
