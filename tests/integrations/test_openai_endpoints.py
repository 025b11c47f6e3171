"""Members behind HTTP answer, or fail in bounded time, memory and number of requests; their keys are told nowhere."""

import logging
import math
import ssl
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address

import httpx
import pytest

from arc_halo.errors import ConfigurationError, MemberError, MemberTimeout
from arc_halo.fusion.members import Answering, Question, Stoppable, level_of
from arc_halo.integrations.openai_endpoints import EndpointMember, load_endpoint, transport
from tests.fixtures.endpoint_server import (
    KEY,
    chat,
    configure,
    drip_body,
    drip_headers,
    endless,
    hang,
    hang_up,
    lie_about_length,
    make_server,
    no_http,
    says,
)

__all__ = ["configure", "make_server"]

QUESTION = Question("What is it?", system="Be brief.", max_tokens=16, seed=3, stop=("END",), top_count=2)
USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(transport, "_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def member(make_server, configure):
    """A member and its server, which does these things one after another."""

    def make(*acts, context=None, **fields):
        server = make_server(*acts, context=context)
        configure("it", server, **fields)
        return EndpointMember("it"), server

    return make


def fails(endpoint, *, within=5.0, error=MemberError):
    began = time.monotonic()
    with pytest.raises(error) as caught:
        endpoint.answer(QUESTION)
    assert time.monotonic() - began < within
    assert KEY not in str(caught.value)
    assert str(caught.value).startswith("endpoint 'it'")
    return str(caught.value)


def test_a_chat_is_asked_and_counted(member):
    endpoint, server = member(says(chat("A row.", usage=USAGE)), prompt_price=3, answer_price="15")
    answer = endpoint.answer(QUESTION)
    assert (answer.text, answer.finish_reason, answer.choices) == ("A row.", "stop", ())
    assert (answer.prompt_token_count, answer.generated_token_count, answer.cached_token_count) == (11, 2, 8)
    assert answer.cost == pytest.approx((11 * 3 + 2 * 15) / 1e6)
    assert answer.details == {"model": "m-1"}
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.asked == [
        {
            "model": "m",
            "max_tokens": 16,
            "temperature": 0.0,
            "seed": 3,
            "stop": ["END"],
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
        }
    ]
    assert isinstance(endpoint, Answering)
    assert isinstance(endpoint, Stoppable)
    assert level_of(endpoint) == "T"


def test_a_chat_gives_log_probabilities(member):
    top = [{"token": "B", "logprob": -3}, {"token": "A", "logprob": -0.1}]
    tokens = [
        {"token": "A", "logprob": -0.1, "bytes": [65], "top_logprobs": top},
        {"token": " row", "logprob": 1e-7, "top_logprobs": []},
    ]
    endpoint, server = member(says(chat("A row", choice={"logprobs": {"content": tokens}})), logprobs=True)
    assert level_of(endpoint) == "L"
    answer = endpoint.answer(QUESTION)
    assert [(each.text, each.log_probability, list(each.top.items())) for each in answer.choices] == [
        ("A", -0.1, [("A", -0.1), ("B", -3.0)]),
        (" row", 0.0, []),
    ]
    assert answer.choices[0].margin == pytest.approx(math.exp(-0.1) - math.exp(-3))
    assert (answer.generated_token_count, answer.prompt_token_count, answer.cost) == (2, None, None)
    assert (server.asked[0]["logprobs"], server.asked[0]["top_logprobs"]) == (True, 2)


def test_completions_are_asked_and_give_log_probabilities(member):
    given = {
        "tokens": [" on", " and"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{" on": -0.5, " off": -1.0, " in": -9.0}, None],
    }
    body = {"choices": [{"text": " on and", "finish_reason": "length", "logprobs": given}], "usage": USAGE}
    endpoint, server = member(says(body), kind="completions", logprobs=True)
    answer = endpoint.answer(QUESTION)
    assert (answer.text, answer.finish_reason, answer.mean_log_probability) == (" on and", "length", -1.0)
    assert [dict(each.top) for each in answer.choices] == [{" on": -0.5, " off": -1.0}, {}]
    assert server.paths == ["/v1/completions"]
    assert (server.asked[0]["prompt"], server.asked[0]["logprobs"]) == ("Be brief.\n\nWhat is it?", 2)


def test_one_that_gives_no_log_probabilities_is_of_level_t(member):
    endpoint, _ = member(says(chat("Yes")), logprobs=True)
    endpoint.answer(QUESTION)
    assert level_of(endpoint) == "T"


def test_an_answer_is_cut_where_the_question_says(member):
    tokens = [{"token": each, "logprob": -1.0} for each in ("One", " END", " two")]
    endpoint, _ = member(says(chat("One END two", choice={"logprobs": {"content": tokens}})), logprobs=True)
    answer = endpoint.answer(QUESTION)
    assert (answer.text, [each.text for each in answer.choices]) == ("One ", ["One"])


def test_it_waits_as_long_as_it_is_told_and_asks_again(member):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    endpoint, server = member(
        says({}, 429, retry_after="1"), says({}, 429, retry_after=later), hang_up, says(b"", 503), says(chat("Now")),
        attempts=5,
    )  # fmt: skip
    began = time.monotonic()
    assert endpoint.answer(QUESTION).text == "Now"
    assert len(server.asked) == 5
    assert 1 <= time.monotonic() - began < 5


def test_it_does_not_wait_for_longer_than_it_may(member):
    endpoint, server = member(says({"error": {"message": "slow down"}}, 429, retry_after="3600"), seconds=2)
    assert "HTTP 429: slow down (no time is left to wait 3.6e+03 seconds" in fails(endpoint, within=1)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "said",
    ["soon", "-1", "1.5", "Mon, 99 Jan 2026 00:00:00 GMT", f"Mon, 01 Jan 2026 00:00:00 +{'9' * 20}", "\u0661"],
)
def test_what_cannot_be_read_of_a_wait_is_no_wait(member, said):
    endpoint, server = member(says({}, 429, retry_after=said.encode().decode("latin-1")), says(chat("Now")))
    assert endpoint.answer(QUESTION).text == "Now"
    assert len(server.asked) == 2


@pytest.mark.parametrize("proxy", ["socks5://me:hidden@localhost:1", "ftp://me:hidden@localhost"])
def test_a_proxy_that_cannot_be_used_is_told_with_what_to_do(member, monkeypatch, proxy):
    endpoint, server = member(says(chat("Now")))
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    said = fails(endpoint)
    assert "Correct HTTPS_PROXY" in said
    assert "hidden" not in said
    assert server.asked == []


def test_a_server_that_is_always_out_of_order_is_asked_so_often(member):
    endpoint, server = member(says({"error": {"message": f"key {KEY}\0 of\nnobody"}}, 500))
    assert fails(endpoint) == "endpoint 'it': HTTP 500: key *** of nobody (asked 4 times)"
    assert len(server.asked) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 418, 501])
def test_a_refusal_is_final(member, status):
    endpoint, server = member(says(b"<p>no</p>" * 1000, status))
    said = fails(endpoint)
    assert f"HTTP {status}: <p>no</p>" in said
    assert len(said) < 300
    assert len(server.asked) == 1


def test_a_redirect_is_not_followed(member, make_server):
    other = make_server(says(chat("mine")))
    endpoint, server = member(says(b"", 307, location=f"{other.url}/chat/completions"))
    assert "HTTP 307" in fails(endpoint)
    assert (len(server.paths), other.paths) == (1, [])


@pytest.mark.parametrize("act", [hang, drip_headers, drip_body], ids=lambda act: act.__name__)
def test_a_server_that_never_ends_is_left_in_time(member, act):
    endpoint, server = member(act, seconds=0.5)
    fails(endpoint, within=2, error=MemberTimeout)
    assert len(server.asked) == 1


@pytest.mark.parametrize("act", [lie_about_length, no_http, hang_up], ids=lambda act: act.__name__)
def test_what_is_no_answer_of_http_is_asked_for_again(member, act):
    endpoint, server = member(act)
    assert "asked 4 times" in fails(endpoint)
    assert len(server.asked) == 4


def test_an_endless_answer_is_cut(member, monkeypatch):
    monkeypatch.setattr(transport, "MAX_NBYTES", 4_000_000)
    endpoint, server = member(endless)
    tracemalloc.start()
    try:
        assert "more than 4000000 bytes" in fails(endpoint)
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()
    assert len(server.asked) == 1


def test_an_endless_error_is_an_error(member):
    def refuse(handler):
        handler.wfile.write(b"HTTP/1.1 400 No\r\nconnection: close\r\n\r\n")
        while not handler.server_state.over.is_set():
            handler.wfile.write(b"no" * 4096)

    assert "HTTP 400: nono" in fails(member(refuse)[0])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"choices": [',
        b"\xff\xfe\0",
        b"[" * 100_000,
        b"null",
        b"[]",
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": {"content": ["a"]}}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"content": null, "refusal": "never"}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": []}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": ["x"]}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [NaN]}}]}',
        b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": -1}}',
        b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": "many"}}',
        b'{"choices": [{"text": "a"}], "usage": {"completion_tokens": 1e400}}',
        b'{"choices": [{"text": "a\\u0000b"}]}',
        b'{"choices": [{"text": "\\ud800"}]}',
        b'{"error": {"message": "with status 200"}}',
        f'{{"choices": [{{"text": "the key is {KEY}"}}]}}'.encode(),
        b'{"choices": [{"text": "the key is ' + KEY.replace("/", "\\/").encode() + b'"}]}',
        b'{"choices": [{"text": "the key is ' + "".join(f"\\u{ord(each):04x}" for each in KEY).encode() + b'"}]}',
        f'{{"model": "{KEY}", "choices": [{{"text": "a"}}]}}'.encode(),
    ],
)
def test_what_cannot_be_read_is_the_members_error(member, body):
    endpoint, server = member(says(body), logprobs=True)
    fails(endpoint)
    assert len(server.asked) == 1


def test_a_compressed_answer_is_not_unpacked(member):
    assert "compressed" in fails(member(says(b"\x1f\x8b", content_encoding="gzip"))[0])


def test_nobody_listens(member):
    endpoint, server = member(hang)
    gone = EndpointMember("it", endpoint.settings.model_copy(update={"url": "http://127.0.0.1:9"}))
    assert "ConnectError" in fails(gone)
    assert server.asked == []


def test_a_certificate_of_nobody_is_refused(member, tmp_path):
    endpoint, server = member(says(chat("trust me")), context=certified(tmp_path))
    assert endpoint.settings.url.startswith("https://")
    assert "CERTIFICATE_VERIFY_FAILED" in fails(endpoint)
    assert server.asked == []


def test_time_is_up_through_tls_too(member, tmp_path, monkeypatch):
    context = certified(tmp_path)
    trusting = httpx.create_ssl_context()
    trusting.load_verify_locations(tmp_path / "certificate.pem")
    monkeypatch.setattr(transport, "_tls", lambda: trusting)
    assert member(says(chat("Safe")), context=context)[0].answer(QUESTION).text == "Safe"
    fails(member(drip_headers, context=context, seconds=0.5)[0], within=2, error=MemberTimeout)


def test_nothing_is_sent_for_nobody(member):
    endpoint, server = member(says(b"", 503, retry_after="30"))
    began = time.monotonic()
    with pytest.raises(MemberTimeout, match="nobody waits"):
        endpoint.answer_while(QUESTION, lambda: time.monotonic() - began < 0.2)
    assert time.monotonic() - began < 3
    assert len(server.asked) == 1


def test_a_key_is_told_nowhere(member, caplog):
    caplog.set_level(logging.DEBUG)
    endpoint, _ = member(says(chat("A")), says({"error": KEY}, 401))
    endpoint.answer(QUESTION)
    fails(endpoint)
    assert KEY not in caplog.text
    assert KEY not in repr(endpoint) + repr(endpoint.settings) + repr(endpoint._post(QUESTION))


def test_endpoints_are_read_from_the_file_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(
        "ARC_HALO_ENDPOINT_SMALL_4B_URL=http://localhost:8000/v1/\nARC_HALO_ENDPOINT_SMALL_4B_MODEL=small\nOTHER=1\n"
    )
    settings = load_endpoint("small-4b")
    assert (settings.url, settings.model, settings.key) == ("http://localhost:8000/v1", "small", None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": ""}, "ARC_HALO_ENDPOINT_IT_URL is not set"),
        ({"url": "file:///etc/passwd"}, "URL: .*http://"),
        ({"url": "ftp://host"}, "URL: .*http://"),
        ({"url": "https://me:hunter2@host"}, "URL: .*no user"),
        ({"url": "https://host/?key=hunter2"}, "URL: .*no user"),
        ({"url": "https://ho st:x"}, "URL"),
        ({"key": "hunter2\n"}, "KEY: .*line break"),
        ({"key": "hunter2é"}, "KEY: .*characters"),
        ({"model": ""}, "MODEL is not set"),
        ({"kind": "hunter2"}, "KIND"),
        ({"prompt_price": "hunter2"}, "PROMPT_PRICE"),
        ({"answer_price": "-1"}, "ANSWER_PRICE"),
        ({"seconds": "0"}, "SECONDS"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_not_told(make_server, configure, fields, said):
    configure("it", make_server(hang), **fields)
    with pytest.raises(ConfigurationError, match=said) as caught:
        EndpointMember("it")
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("name", ["", "a b", "../x", "a__b", "é", "a\n"])
def test_a_name_that_none_can_have_is_refused(name):
    with pytest.raises(ConfigurationError, match="no endpoint can be called"):
        load_endpoint(name)


def certified(folder):
    """TLS with a certificate that nobody signed but itself."""
    from cryptography import x509  # noqa: PLC0415  # moto brings it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    raw = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password)
    path.write_bytes(raw + certificate.public_bytes(encoding))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
