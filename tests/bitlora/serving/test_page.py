"""The page in a browser: all models are asked the same, and their answers stand in columns as they come."""

from __future__ import annotations

import queue
import re
import threading

import pytest
import uvicorn
from chromium import chromium
from playwright.sync_api import expect

from bitlora.data.chat import prompt_text
from bitlora.engine.generation.greedy import OutputEnd, generate
from bitlora.serving.app import ServedModel, make_app
from bitlora.serving.asking import EngineThread
from bitlora.serving.server import bind

pytestmark = pytest.mark.browser

NAMES = {"t0001": 0, "<b>t0002": 1}
TURN = "Say <i>a</i>\nand 🙂"
CONTEXT = 3000


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def serve(served_engine, tokenizer):
    """Starts the endpoint; gives its address and the engine's thread."""
    running = []

    def start(token=None):
        engine_thread = EngineThread(served_engine, frozenset({2}))
        models = {name: ServedModel(slot, tokenizer, served_engine.base.vocab_size) for name, slot in NAMES.items()}
        app = make_app(engine_thread, models, CONTEXT, token)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        at = bind("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        address = f"http://127.0.0.1:{at.getsockname()[1]}/"
        at.listen()  # so that a first request waits for the server
        thread.start()
        running.append((server, thread))
        return address, engine_thread

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def visit(browser):
    """Opens the page: nothing may go wrong but what is said on it, and nothing be asked of others."""
    page = browser.new_page(viewport={"width": 900, "height": 700})
    wrong, asked = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    page.on("request", lambda request: asked.append(request.url))

    def open_page(address):
        page.goto(address)
        return page

    yield open_page
    address = page.url
    page.close()
    assert wrong == []
    assert {url for url in asked if not url.startswith((address, "data:,"))} == set()


def written(engine, tokenizer, most):
    """What each model answers, without a server."""
    prompt = tokenizer(prompt_text(TURN, tokenizer), add_special_tokens=False).input_ids
    rows = generate(engine, [(slot, prompt) for slot in NAMES.values()], OutputEnd(most, frozenset({2})))
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def test_all_are_asked_the_same_and_stand_in_columns(serve, visit, served_engine, tokenizer):
    expected = written(served_engine, tokenizer, 20)
    address, _ = serve()
    page = visit(address)
    columns = page.locator("article")
    expect(columns.locator("h2")).to_have_text([*NAMES])
    page.get_by_label("A user's turn").fill(TURN)
    page.get_by_label("Tokens of an answer").fill("20")
    page.get_by_role("button", name="Ask").click()
    expect(columns.locator("footer")).to_contain_text(["after", "after"])
    assert [column.evaluate("div => div.textContent") for column in columns.locator("div").all()] == expected
    left, right = (column.bounding_box() for column in columns.all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_temperature_is_asked_for_where_there_is_one(serve, visit):
    address, _ = serve()
    page = visit(address)
    posted = []
    page.on("request", lambda request: posted.append(request.post_data_json) if request.method == "POST" else None)
    page.get_by_label("A user's turn").fill("a")
    page.get_by_label("Tokens of an answer").fill("3")
    for temperature, asked in (("0", None), ("0.7", 0.7)):
        page.get_by_label("Temperature").fill(temperature)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("article footer")).to_contain_text(["after", "after"])
        expect(page.get_by_role("button", name="Ask")).to_be_enabled()
        assert [body.get("temperature") for body in posted[-2:]] == [asked, asked]
    assert len(posted) == 4


def test_answers_grow_as_they_come_and_are_stopped(serve, visit, monkeypatch):
    address, engine_thread = serve()
    left, leave = queue.Queue(), engine_thread.leave
    monkeypatch.setattr(engine_thread, "leave", lambda row: (left.put(len(row.written) < row.most), leave(row)))
    page = visit(address)
    page.get_by_label("A user's turn").fill("a")
    page.get_by_label("Tokens of an answer").fill("2900")
    page.get_by_role("button", name="Ask").click()
    grown = re.compile(".{5}", re.DOTALL)
    expect(page.locator("article div")).to_have_text([grown, grown])
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("article footer")).to_have_text(["stopped", "stopped"])
    assert [left.get(timeout=60) for _ in range(2)] == [True, True]  # and their rows with them
    page.get_by_label("Tokens of an answer").fill("3")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("article footer")).to_contain_text(["after", "after"])


def test_a_token_is_asked_for(serve, visit):
    address, _ = serve("open-sesame")
    page = visit(address)
    expect(page.get_by_role("status")).to_contain_text("a wrong token, or none")
    assert page.locator("article").count() == 0
    page.get_by_label("Token", exact=True).fill("open-sesame")
    page.get_by_label("A user's turn").fill("a")
    page.get_by_label("Tokens of an answer").fill("3")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("article footer")).to_contain_text(["after", "after"])
    expect(page.get_by_role("status")).to_have_text("")
