"""Which addresses of servers are taken, and what they are called."""

from __future__ import annotations

import re
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core._engine.wire.address import Address


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        (
            ["127.0.0.1:30000", "http://127.0.0.1:30000", "HTTP://127.0.0.1:30000/", "127.0.0.1:030000//"],
            "127.0.0.1:30000",
        ),
        (["host:80", "Host:80", "http://host", "http://HOST/"], "host:80"),
        (["[::1]:30000", "http://[0:0:0:0:0:0:0:1]:30000", "[0::1]:30000/"], "[::1]:30000"),
        (["https://gateway.example", "https://gateway.example:443/"], "https://gateway.example"),
        (["https://gateway.example:8443", "https://GATEWAY.example:8443/"], "https://gateway.example:8443"),
        (["https://gateway.example/base/path", "https://gateway.example:443/base/path/"],) * 1
        + ("https://gateway.example/base/path",),
        (["host_1:8000/v1", "http://host_1:8000/v1/"], "host_1:8000/v1"),
        (["https://[fe80::1]/x"], "https://[fe80::1]/x"),
    ],
)
def test_every_spelling_of_an_address_is_one_server(spellings: list[str], name: str) -> None:
    addresses = [Address.parse(spelling) for spelling in spellings]
    assert set(addresses) == {Address.parse(name)}
    assert {address.name for address in addresses} == {str(address) for address in addresses} == {name}


def test_different_servers_are_different() -> None:
    spellings = [
        *(
            "host:80",
            "host:81",
            "other:80",
            "https://host",
            "https://host:80",
            "http://host/x",
            "http://host/y",
        ),
        *("http://host/X", "[::1]:80", "127.0.0.1:80"),
    ]
    assert len({Address.parse(spelling) for spelling in spellings}) == len(spellings)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no port"),
        ("host", "has no port"),
        ("host:", "has no port"),
        ("host/path", "has no port"),
        ("[::1]", "has no port"),
        (":80", "has no host"),
        ("http://", "has no host"),
        ("http://:80", "has no host"),
        ("::1:80", "has no host"),
        ("-host:80", "has no host, or one that cannot be"),
        ("a..b:80", "has no host, or one that cannot be"),
        ("h*st:80", "has no host, or one that cannot be"),
        ("host\\x:80", "has no host, or one that cannot be"),
        ("[::1:80", "has no address of IPv6"),
        ("[::g]:80", "has no address of IPv6 in its brackets$"),
        ("[v1.a:b]:80", "has no address of IPv6 in its brackets$"),
        ("host:0", "has a port that is not in 1..65535"),
        ("host:65536", "has a port that is not in 1..65535"),
        ("host:80:90", "has a port that is not in 1..65535"),
        ("http://host:", "has a port that is not in 1..65535"),
        ("http://host:-1", "has a port that is not in 1..65535"),
        ("http://host:port", "has a port that is not in 1..65535"),
        ("ftp://host:80", "is neither http nor https"),
        ("unix:///run/server", "is neither http nor https"),
        ("http://host/a/../b", "has a path that cannot be"),
        ("http://host/a//b", "has a path that cannot be"),
        ("http://host/a%2", "has a path that cannot be"),
        ("http://host?x=1", "has a query or a fragment"),
        ("http://host#x", "has a query or a fragment"),
        ("ho st:80", "has characters that belong in no address"),
        ("host:80\n", "has characters that belong in no address"),
        ("höst:80", "has characters that belong in no address"),
        ("host:٨٠", "has characters that belong in no address"),
        ("h" * 501, "has 501 characters"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^address '.*' {problem}") as caught:
        Address.parse(text)
    assert len(str(caught.value)) < 300
    if text.isalnum() and len(text) < 100:
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize("port", [1, 65535])
def test_every_port_is_taken(port: int) -> None:
    assert Address.parse(f"host:{port}").port == port


def test_of_a_text_that_is_too_long_the_beginning_is_shown() -> None:
    longest = "host:80/" + 492 * "a"
    assert Address.parse(longest).name == longest
    with pytest.raises(ValueError, match=rf"^address '{longest[:100]}\.\.\.' has 501 characters; 500 is"):
        Address.parse(longest + "a")
    with pytest.raises(ValueError, match=rf"^address '{500 * 'h'}' has no port"):
        Address.parse(500 * "h")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("me:secret@host:80", "***@host:80"), ("https://me@host/x?key=1", "https://***@host/x?***")],
)
def test_the_rest_of_an_address_with_secrets_is_shown(text: str, shown: str) -> None:
    with pytest.raises(ValueError, match=f"^address '{re.escape(shown)}' has a user name or a password"):
        Address.parse(text)


@pytest.mark.parametrize("value", [None, 30000, b"host:80", ("host", 80)])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(
        TypeError, match=rf"^an address is a {type(value).__name__}, not a str; give host:port"
    ):
        Address.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "http://me:s3cret@host:80",
        "https://s3cret@host",
        "me:s3cret@host:80",
        "http://me:s3cret@host:port",
        "http://me:s3cret@[::1",
        "http://me:s3/cret@s3cret@host:80",
        "http://me:s3cret@host:80 ",
        "http://me:s3cret@" + "host" * 200,
        "http://host:80/?key=s3cret",
        "http://host:80/#s3cret",
        "http://host:port?key=s3cret",
        "ftp://me:s3cret@host",
        "ftp://me:s3cret://x@host?y",
    ],
)
def test_what_may_be_a_secret_is_never_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r"^address ") as caught:
        Address.parse(text)
    error: BaseException | None = caught.value
    while error is not None:
        assert "cret" not in f"{error} {error!r} {''.join(traceback.format_exception_only(error))}"
        error = error.__context__
    if "@" in text and text.isprintable() and " " not in text and len(text) < 100:
        assert "has a user name or a password in it; give the server's key as api_key" in str(caught.value)


hosts = st.from_regex(r"[a-z0-9]{1,5}(\.[a-z]{1,3})?", fullmatch=True) | st.ip_addresses().map(
    lambda ip: f"[{ip}]" if ip.version == 6 else str(ip)
)
paths = st.from_regex(r"(/[a-zA-Z0-9~+%]{1,4}){0,3}/?", fullmatch=True)


@given(st.sampled_from(["", "http://", "https://"]), hosts, st.integers(1, 65535), paths)
def test_a_name_is_an_address_and_the_same_one(scheme: str, host: str, port: int, path: str) -> None:
    try:
        address = Address.parse(f"{scheme}{host}:{port}{path}")
    except ValueError:
        assert "%" in path
        return
    assert Address.parse(address.name) == address
    url = address.url("/x")
    assert (url.scheme, url.explicit_port or url.port) == (address.scheme, port)
    assert url.host == address.host


@given(st.text(alphabet=st.sampled_from("a1:/[]@?#%.-\\ é"), max_size=12))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert Address.parse(address.name) == address
    assert address.url("/x").path_safe.endswith("/x")


@pytest.mark.parametrize(
    ("address", "path", "params", "url"),
    [
        ("host:80", "/generate", None, "http://host/generate"),
        ("host:81", "/generate", {}, "http://host:81/generate"),
        ("[::1]:81", "/pause", {"mode": "a b&c"}, "http://[::1]:81/pause?mode=a+b%26c"),
        ("https://gateway.example/base/", "/x", {"y": "1"}, "https://gateway.example/base/x?y=1"),
    ],
)
def test_paths_of_calls_go_behind_that_of_the_address(
    address: str, path: str, params: dict[str, str] | None, url: str
) -> None:
    assert str(Address.parse(address).url(path, params)) == url
