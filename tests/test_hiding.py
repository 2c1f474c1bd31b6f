"""Texts without keys and passwords: what is hidden, what stays, and how long that takes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core._hiding import HIDDEN, names_a_key, without_keys

pytestmark = pytest.mark.any_loop

_NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,12}", fullmatch=True)
_HOSTS = _NAMES | st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map("[{}]".format)
_PATHS = st.from_regex(r"(/[a-z0-9._~@:,;=*-]{0,9}){0,3}", fullmatch=True)
_QUERIES = st.from_regex(r"(\?[a-z]{1,3}=[a-z0-9@:/,]{0,9})?", fullmatch=True)
_ALLOWED = r"[a-z0-9._~!$&'()*+,;=:@%-]"
"""What a password may have in it, and an "@" besides."""


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """Return a URL without a user."""
    port = draw(st.integers(0, 65535).map(":{}".format) | st.just(""))
    return f"{draw(_NAMES)}://{draw(_HOSTS)}{port}{draw(_PATHS)}{draw(_QUERIES)}"


@given(
    st.lists(addresses(), min_size=1, max_size=3),
    st.sampled_from([" ", ' "', ": gone, ", " (", '", "', '","']),
)
def test_of_an_address_without_a_user_nothing_is_hidden(urls: list[str], between: str) -> None:
    text = f"POST {between.join(urls)}{between}me@example.org said no"
    assert without_keys(text) == text


@given(_HOSTS, _PATHS, st.from_regex(rf"{_ALLOWED}{{0,9}}key-0815[a-z,'@:]{{0,3}}", fullmatch=True))
def test_of_an_address_with_a_password_that_alone_is_hidden(host: str, path: str, password: str) -> None:
    text = "cannot reach http://me:{}@{}{}, again"
    assert without_keys(text.format(password, host, path)) == text.format(HIDDEN, host, path)


@given(
    _HOSTS,
    _PATHS,
    st.from_regex(
        r"([a-z]|[0-9]{6}|[0-9]{1,5}[,;&:])[a-z0-9.,;&:'/?#\"<>|{}\\^`\[\]]{0,9}key-0815",
        fullmatch=True,
    ),
)
def test_a_password_is_hidden_whatever_is_in_it_unless_it_begins_like_a_port(
    host: str, path: str, password: str
) -> None:
    said = without_keys(f"cannot reach http://me:{password}@{host}{path}, again")
    assert said.startswith(f"cannot reach http://me:{HIDDEN}@")
    assert said.endswith(", again")
    assert "key-0815" not in said


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: ApiKey KEY",
        "authorization: KEY",
        "Authorization: OAuth KEY",
        "Proxy-Authorization : Negotiate KEY==",
        "Authorization: AWS4-HMAC-SHA256 Credential=a/b, Signature=KEY",
        "Authorization: Signature=KEY",
        'Authorization: Digest username="me", nonce="n", response="KEY"',
        """{'Authorization': 'Digest username="me", response="KEY"'}""",
        r'{"Authorization": "Digest username=\"me\", response=\"KEY\""}',
        "Authorization: Bearer 'KEY'",
        "{b'Authorization': b'Basic KEY'}",
        "(('Authorization', 'Basic KEY'), (b'authorization', b'Basic KEY'))",
        r"{\"authorization\": \"Basic KEY\", \"api_key\": \"KEY\"}",
        "api-key: Bearer KEY",
        "OPENAI_API_KEY=KEY",
        "apiKey=KEY,",
        "api_key=b'KEY'",
        "api_key=SecretStr('KEY')",
        "password=p@ss,KEY",
        "password=[x]KEY",
        "password=(KEY",
        "{'api_keys': ['KEY', 'KEY']}",
        "api_keys=[KEY, KEY]",
        "api_keys=(b'KEY',)",
        "(b'api_keys', [b'KEY', b'KEY'])",
        'api_keys: [\n  "KEY]",\n  "KEY"\n]',
        r"{\"api_keys\": [\"KEY]\", \"KEY\"]}",
        "{'password': 'two words, KEY'}",
        "DB_PASSWORD: KEY",
        "client_secret=KEY",
        "Cookie: KEY",
        "Set-Cookie: a=b; session=KEY",
        "GET /?token=KEY",
        "GET /?x=1&key=KEY",
        "GET /?access_token=KEY",
        "Bearer KEY",
        'bearer "KEY"',
        "http://me:8;KEY/x@h",
        "http://me:KEY<x@h/",
        'http://me:KEY"x@h/',
        "http://me:p/@KEY@h/",
        "http://me:{KEY@h",
        "http://me:123456/KEY@h",
        "http://u[x:KEY/y@h",
        "redis://:KEY@h",
        "git+ssh://KEY@github.com:org/repo@v1",
        "HTTP://ME:KEY@h",
    ],
)
def test_a_key_is_hidden_however_it_is_written(text: str) -> None:
    said = without_keys(f"got {text}")
    assert "KEY" not in said.replace("API_KEY", "")
    assert HIDDEN in said
    assert said.startswith("got ")


@pytest.mark.parametrize(
    "text",
    [
        "POST http://127.0.0.1:30000/generate: gone",
        "https://gpu-7:8443",
        "http://[::1]:8000/x",
        "http://h:80/x@y and http://h:80?x=a/b@c",
        "https://10.0.0.1:443/v1/chat/completions?x=1 failed",
        "http://h:80|me@x.org",
        "http://h:80}me@x.org",
        "http://h:80`/x@y",
        r"http://h:80\n:me@x.org",
        "http://h:/x@y",
        "http://h|me@x.org",
        '{"url":"http://h:80","mail":"me@x.org"}',
        "http://h:80,http://h:81/x@y",
        "basic training: the authorization failed",
        "the password, which is 'wrong'",
        "tokens=128 max_tokens: 5 token: 7, pad_token=0",
        "secret_santa=me",
        "passwordless: yes",
    ],
)
def test_what_only_looks_like_a_key_stays(text: str) -> None:
    assert without_keys(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Authorization: Basic x3 from http://h", "Authorization: *** from http://h"),
        ("{'Authorization': 'Basic x', 'Accept': 'y'}", "{'Authorization': '***', 'Accept': 'y'}"),
        ("f(api_key='x', n=5)", "f(api_key='***', n=5)"),
        ("f(api_key=x, n=5)", "f(api_key=*** n=5)"),
        ("{'api_keys': ['x', 'y'], 'n': [5]}", "{'api_keys': [***], 'n': [5]}"),
        ("api_keys=(x, y) at http://h", "api_keys=*** at http://h"),
        ("password=[x\nat line 5", "password=***\nat line 5"),
        ("password=x\nat line 5", "password=***\nat line 5"),
        ("Cookie: a=b; c=d\nat line 5", "Cookie: ***\nat line 5"),
        ("http://h:80&x=me@x.org", "http://h:***@x.org"),  # as RFC 3986 reads it
        ("s3://bucket:prefix/a@b", "s3://bucket:***@b"),  # which it cannot read
        ("https://me:x@registry/@scope/a", "https://me:***@registry/@scope/a"),
    ],
)
def test_no_more_than_the_key_is_hidden(text: str, said: str) -> None:
    assert without_keys(text) == said


@pytest.mark.parametrize(
    "name", ["password_", "Set-Cookie", "OPENAI_API_KEY", "hf_token", "x-api-key", "secrets"]
)
def test_a_field_called_so_is_hidden(name: str) -> None:
    assert names_a_key(name)


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "secret_santa", "passwordless", "key", "token"])
def test_a_field_called_so_is_shown(name: str) -> None:
    assert not names_a_key(name)


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        ("", "://a:b/"),
        ("", "http://u:v,"),
        ("", "://"),
        ("", "://:x"),
        ("", "://@/"),
        ("://", "u@"),
        ("://a:", "1"),
        ("://a:", "b"),
        ("://a:", ":@ "),
        ("", "bearer "),
        ("bearer", " "),
        ("", "authorization:@'"),
        ("", "authorization: a "),
        ("", "authorization: a=="),
        ("authorization= basic", " "),
        ("authorization: ", "="),
        ("", "('authorization', "),
        ("", "password="),
        ("", "password='"),
        ("password='", "\\"),
        ("password", "_"),
        ("password=", "\\"),
        ("password=" + "\\" * 300_000 + '"', "\\"),
        ("", "password=x("),
        ("", "password=(x "),
        ("", "password=['"),
        ("", "password=['x',"),
        ("password=['", "x' '"),
        ("password=token", "\t"),
        ("", "?token="),
    ],
    ids=repr,
)
def test_a_long_text_takes_no_longer_than_many_short_ones(begin: str, again: str) -> None:
    text = begin + again * (1_000_000 // len(again))
    began = time.process_time()
    without_keys(text)
    assert time.process_time() - began < 3.0  # what is quadratic takes minutes
