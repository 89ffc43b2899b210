"""The endpoint, asked as OpenAI's clients ask: answers whole and streamed, and every refusal in its shape."""

import asyncio
import json
import queue

import pytest
from starlette.testclient import TestClient

from bitlora.data.chat import prompt_text
from bitlora.engine.generation.decoder import Decoder
from bitlora.engine.generation.greedy import OutputEnd, generate
from bitlora.engine.generation.sampling import Sampling
from bitlora.serving.app import MOST_BYTES, ServedModel, make_app
from bitlora.serving.asking import AskedRow, EngineThread, TooManyError

TOKEN = "sésame"
CONTEXT = 100
EOS = 2
NAMES = {"plain": 0, "ternary": 1}


@pytest.fixture(scope="module")
def models(served_engine, tokenizer):
    return {name: ServedModel(slot, tokenizer, served_engine.base.vocab_size) for name, slot in NAMES.items()}


@pytest.fixture
def app(served_engine, models):
    return make_app(EngineThread(served_engine, frozenset({EOS})), models, CONTEXT, TOKEN)


@pytest.fixture
def client(app):
    bearer = {"Authorization": f"Bearer {TOKEN}".encode()}
    with TestClient(app, headers=bearer) as client:
        yield client


@pytest.fixture(scope="module")
def expected(served_engine, tokenizer):
    """What a model writes after a text, by a loop without threads."""

    def find(name, text, most):
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        (found,) = generate(served_engine, [(NAMES[name], prompt)], OutputEnd(most, frozenset({EOS})))
        return tokenizer.decode(found, skip_special_tokens=True), len(prompt), len(found)

    return find


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


@pytest.mark.parametrize("name", NAMES)
def test_a_completion(client, expected, name):
    text, before, after = expected(name, "1+2=", 12)
    body = {"model": name, "prompt": "1+2=", "max_tokens": 12}
    found = client.post("/v1/completions", json=body).json()
    assert (found["object"], found["model"]) == ("text_completion", name)
    (choice,) = found["choices"]
    assert choice["text"] == text
    assert choice["finish_reason"] == ("length" if after == 12 else "stop")
    assert found["usage"] == {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after}
    streamed = events(client.post("/v1/completions", json={**body, "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in streamed) == text
    assert len(streamed) > 2


def test_a_completion_that_is_drawn(client, served_engine, tokenizer):
    """By its seed, as the same row alone; without one each is another."""
    prompt = tokenizer("1+2=").input_ids
    body = {"model": "plain", "prompt": prompt, "max_tokens": 12, "temperature": 1.5, "top_p": 0.95}
    expected = []
    for seed in (0, -7, 2**62):
        decoder = Decoder(served_engine)
        number = decoder.add(0, prompt, Sampling(temperature=1.5, top_p=0.95, seed=seed))
        tokens = [decoder.step()[number] for _ in range(12)]
        expected.append(tokens[: tokens.index(EOS)] if EOS in tokens else tokens)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected]
    assert len({*texts}) == 3
    for seed, text in zip((0, -7, 2**62), texts, strict=True):
        found = client.post("/v1/completions", json={**body, "seed": seed}).json()
        assert found["choices"][0]["text"] == text
    without = {client.post("/v1/completions", json=body).json()["choices"][0]["text"] for _ in range(4)}
    assert len(without) > 1
    cold = {"temperature": 0, "top_p": 0.5, "seed": 3, "user": "me", "metadata": {"a": "b"}, "store": False}
    likeliest = client.post("/v1/completions", json={**body, **cold}).json()["choices"][0]["text"]
    (greedy,) = generate(served_engine, [(0, prompt)], OutputEnd(12, frozenset({EOS})))
    assert likeliest == tokenizer.decode(greedy, skip_special_tokens=True)


def test_a_completion_of_token_ids(client, tokenizer, expected):
    ids = tokenizer("1+2=").input_ids
    found = client.post("/v1/completions", json={"model": "plain", "prompt": ids, "max_tokens": 5})
    assert found.json()["choices"][0]["text"] == expected("plain", "1+2=", 5)[0]


@pytest.mark.parametrize("content", ["a b", [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]])
def test_a_chat_in_the_template_that_was_trained_with(client, tokenizer, expected, content):
    text, before, after = expected("ternary", prompt_text("a b", tokenizer), 9)
    body = {"model": "ternary", "messages": [{"role": "user", "content": content}], "max_completion_tokens": 9}
    found = client.post("/v1/chat/completions", json={**body, "temperature": 0}).json()
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"] == {"role": "assistant", "content": text}
    *parts, usage = events(
        client.post("/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}})
    )
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == text
    assert [part["choices"][0]["finish_reason"] for part in parts][-2:] == [None, "length" if after == 9 else "stop"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == after
    assert usage["usage"]["prompt_tokens"] == before


def test_a_stop_string_ends_an_answer_before_it(client, expected):
    text, _, _ = expected("plain", "1+2=", 20)
    stop = text[5:7]
    assert stop
    body = {"model": "plain", "prompt": "1+2=", "max_tokens": 20, "stop": [stop, "nowhere"]}
    found = client.post("/v1/completions", json=body).json()["choices"][0]
    assert found["text"] == text[: text.index(stop)]
    assert found["finish_reason"] == "stop"
    streamed = events(client.post("/v1/completions", json={**body, "stop": stop, "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in streamed) == found["text"]


def test_an_answer_ends_with_the_context(client):
    found = client.post("/v1/completions", json={"model": "plain", "prompt": "a" * 95, "max_tokens": 50}).json()
    assert found["usage"]["total_tokens"] <= CONTEXT
    assert found["usage"]["completion_tokens"] <= 5


def test_the_models(client):
    found = client.get("/v1/models").json()
    assert [model["id"] for model in found["data"]] == [*NAMES]


USER = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("completions", b"{", 400, "the body is no JSON: EOF"),
        ("completions", b"[1]", 400, "the body: "),
        ("completions", {"prompt": "a"}, 400, "model: missing"),
        ("completions", {"model": 3, "prompt": "a"}, 400, "model: found 3; give text"),
        ("completions", {"model": "plain"}, 400, "prompt: missing"),
        ("completions", {"model": "plain", "prompt": ["a", "b"]}, 400, "prompt: give a string, or a list of token ids"),
        ("completions", {"model": "plain", "prompt": [5, 100000]}, 400, "prompt: a token id is from 0 to "),
        ("completions", {"model": "plain", "prompt": ""}, 400, "the prompt is empty"),
        ("completions", {"model": "plain", "prompt": "a" * 100}, 400, "the prompt has 100 tokens; with its answer"),
        ("completions", {"model": "plain", "prompt": "a", "max_tokens": 0}, 400, "max_tokens: found 0; give a number of"),
        ("completions", {"model": "plain", "prompt": "a", "max_tokens": "3"}, 400, "max_tokens: found '3'; give a"),
        ("completions", {"model": "plain", "prompt": "a", "temperature": 2.5}, 400, "temperature: found 2.5; give"),
        ("completions", {"model": "plain", "prompt": "a", "temperature": -1}, 400, "temperature: found -1; give"),
        ("completions", {"model": "plain", "prompt": "a", "temperature": 1, "top_p": 1.5}, 400, "top_p: found 1.5; give a"),
        ("completions", {"model": "plain", "prompt": "a", "top_p": 0.5}, 400, "top_p: found 0.5 without temperature, and"),
        ("completions", {"model": "plain", "prompt": "a", "seed": 1.5}, 400, "seed: found 1.5; give a whole number"),
        ("completions", {"model": "plain", "prompt": "a", "top_k": 5}, 400, "top_k: there is no such key here"),
        ("completions", {"model": "plain", "prompt": "a", "store": True}, 400, "store: found true; nothing is kept"),
        ("completions", {"model": "plain", "prompt": "a", "n": 2}, 400, "n: found 2; there is one answer"),
        ("completions", {"model": "plain", "prompt": "a", "presence_penalty": 1}, 400, "presence_penalty: found 1; there"),
        ("completions", {"model": "plain", "prompt": "a", "stop": [""]}, 400, "stop: give a string that is not empty"),
        ("completions", {"model": "plain", "prompt": "a", "logprobs": 5}, 400, "logprobs: there is no such key here"),
        ("completions", {"model": "other", "prompt": "a"}, 404, "model: there is no 'other' here; there are plain, t"),
        ("chat/completions", {"model": "plain", "messages": []}, 400, "messages: found an empty list; give a"),
        ("chat/completions", {"model": "plain", "messages": [{"role": "user"}]}, 400, "messages.0.content: missing"),
        ("chat/completions", {"model": "plain", "messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role: "),
        ("chat/completions", {"model": "plain", "messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content: "),
        ("chat/completions", {"model": "plain", **USER, "tools": []}, 400, "tools: there is no such key here"),
        ("nowhere", {}, 404, "Not Found; there are /v1/models"),
        ("completions", b" " * (MOST_BYTES + 1), 413, "the body is longer than"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(client, path, body, status, said):
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    response = client.post(f"/v1/{path}", **sent)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["message"].startswith(said)
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"bearer {TOKEN}", TOKEN, "Bearer "])
def test_without_the_token_nothing_is_answered(app, given):
    headers = {} if given is None else {"Authorization": given.encode()}
    with TestClient(app) as client:
        for response in (
            client.get("/v1/models", headers=headers),
            client.post("/v1/completions", json={"model": "plain", "prompt": "a"}, headers=headers),
        ):
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
            assert "plain" not in response.text
        assert "plain" not in client.get("/").text


def test_without_a_token_only_this_machines_names_are_answered(served_engine, models):
    app = make_app(EngineThread(served_engine, frozenset({EOS})), models, CONTEXT)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200
        assert client.get("/v1/models", headers={"Host": "[::1]:8000"}).status_code == 200
        assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400


def test_too_many_and_a_broken_engine_have_their_own_answers(client, monkeypatch):
    def full(self, row):
        raise TooManyError("256 requests wait already; ask again later")

    body = {"model": "plain", "prompt": "a"}
    monkeypatch.setattr(EngineThread, "ask", full)
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 429
    assert response.json()["error"] == {
        "message": "256 requests wait already; ask again later", "type": "rate_limit_error", "param": None, "code": None,
    }  # fmt: skip

    def broken(self, row):
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(EngineThread, "ask", broken)
    assert client.post("/v1/completions", json=body).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_raises_is_said_so(client, served_engine, monkeypatch, stream):
    def raises(*args, **options):
        raise ValueError("no such kernel")

    monkeypatch.setattr(served_engine.base.head, "hidden", raises)
    response = client.post("/v1/completions", json={"model": "plain", "prompt": "a", "stream": stream})
    error = json.loads(response.text.removeprefix("data: "))["error"]
    assert error["message"] == "ValueError: no such kernel"
    assert response.status_code == (200 if stream else 500)


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_takes_the_row_along(served_engine, models, stream):
    thread = EngineThread(served_engine, frozenset())
    app = make_app(thread, models, 5000)
    body = json.dumps({"model": "plain", "prompt": "a", "max_tokens": 4000, "stream": stream}).encode()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"", "root_path": "", "scheme": "http",
        "query_string": b"", "headers": [(b"host", b"localhost")], "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    parts = [{"type": "http.disconnect"}, {"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        while len(parts) == 1 and not thread.running:
            await asyncio.sleep(0)
        return parts.pop()

    async def send(message):
        pass

    thread.start()
    asyncio.run(app(scope, receive, send))
    told = queue.Queue()
    thread.ask(AskedRow(1, [5, 6], 3, told.put))
    assert [told.get(timeout=60) for _ in range(4)][-1] == ("length", "")
    assert thread.running == 0
    thread.close()
