"""What may be connected to, and in which spelling."""

import pickle
import socket

import pytest

from datakit.errors import UsageError
from datakit.web import hosts as hosts_module
from datakit.web.hosts import Hosts, RefusedUrl, parse_allowed, parse_mirrors

PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://a.example/x.jpg", "https://a.example/x.jpg"),
        ("HTTPS://A.Example:443/x.jpg#top", "https://a.example/x.jpg"),
        ("http://a.example:8080", "http://a.example:8080/"),
        ("http://a.example?x=1", "http://a.example/?x=1"),
        ("http://a.example/a b.jpg?q=c d", "http://a.example/a%20b.jpg?q=c%20d"),
        ("http://a.example/%E4%BD%A0?v=1%202", "http://a.example/%E4%BD%A0?v=1%202"),
        ("http://a.example/100%.jpg", "http://a.example/100%25.jpg"),
        ("http://a.example/é|[1].jpg", "http://a.example/%C3%A9%7C[1].jpg"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://a_b.example/", "http://a_b.example/"),
        (" http://a.example/x ", "http://a.example/x"),
        ("http://0x5db8d70e/", f"http://{PUBLIC}/"),
        ("http://[2606:4700:0::1111]:8443/", "http://[2606:4700::1111]:8443/"),
    ],
)
def test_a_url_is_sent_in_one_spelling(written, sent):
    hosts = Hosts()

    checked = hosts.check_url(written)

    assert checked == sent
    assert hosts.check_url(checked) == sent


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.jpg",
        "file:///etc/passwd",
        "ftp://a.example/x",
        "data:image/png;base64,AA",
        "//a.example/x",
        "http:/a.example/x",
        "http://",
        "http:///x",
        "http://:80/x",
        "http://user:secret@a.example/x",
        "http://a.example@127.0.0.1/x",
        "http://a.example/x\r\nHost: b",
        "http://a.example/\tx",
        "http://a.example\\@b.example/x",
        "http://a.example:0/",
        "http://a.example:65536/",
        "http://a.example:8 0/",
        "http://a.example:٣/",
        "http://a..example/",
        "http://%31%32%37.0.0.1/",
        "http://1.2.3.4.5/",
        "http://256.1.1.1.0x/",
        "http://09.1.1.1/",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://[::g]/",
        "http://a.example/\ud800",
        "http://" + "a" * 64 + ".example/",
        "http://a.example/" + "a" * 9000,
    ],
)
def test_a_url_in_a_bad_form_is_refused(url):
    with pytest.raises(RefusedUrl) as caught:
        Hosts().check_url(url)

    assert caught.value.outcome == "refused_url"


def test_a_password_is_not_repeated_in_the_message():
    with pytest.raises(RefusedUrl) as caught:
        Hosts().check_url("http://user:secret@a.example/x")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.0.0.1.", "0"),
        *(
            "\uff11\uff12\uff17.0.0.1",
            "10.0.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
        ),
        *("168.63.129.16", "192.0.0.192", "100.100.100.200", "224.0.0.1", "255.255.255.255", "198.18.0.1"),
        *("[::]", "[::1]", "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:0:10.0.0.1]", "[fe80::1]"),
        *("[fd00:ec2::254]", "[ff02::1]", "[2002:7f00:1::]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::8.8.8.8]"),
        *("[2001:db8::1]", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[2606:4700::5efe:10.0.0.1]"),
    ],
)
def test_an_address_that_is_not_public_is_refused_in_every_spelling(host):
    with pytest.raises(RefusedUrl) as caught:
        Hosts().check_url(f"http://{host}/")

    assert caught.value.outcome == "refused_address"


@pytest.mark.parametrize(
    "ip",
    [PUBLIC, "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::", "172.32.0.1"],
)
def test_a_public_address_passes(ip):
    Hosts().check_address("a.example", ip, 80)


def test_the_address_of_a_name_is_checked_for_that_port_alone():
    hosts = Hosts(allowed=("intra.example:8080", "127.0.0.1", "[::1]:81"))

    hosts.check_address("Intra.example.", "10.0.0.1", 8080)
    hosts.check_address("127.0.0.1", "127.0.0.1", 9)
    hosts.check_address("[0:0::1]", "::1", 81)

    for host, ip, port in (
        ("intra.example", "10.0.0.1", 80),
        ("evil.example", "127.0.0.1", 9),
        ("[::1]", "::1", 80),
        ("a.example", "fe80::1%eth0", 80),
    ):
        with pytest.raises(RefusedUrl, match="DATAKIT_ALLOW_HOSTS"):
            hosts.check_address(host, ip, port)


def test_of_a_hosts_addresses_the_public_ones_are_used(monkeypatch):
    answers = {"both": ["10.0.0.1", PUBLIC], "inside": ["10.0.0.1"], "none": []}
    monkeypatch.setattr(hosts_module, "look_up", lambda host, port: answers[host])

    both = Hosts().addresses("both", 80)

    assert both == [PUBLIC]
    with pytest.raises(RefusedUrl):
        Hosts().addresses("inside", 80)
    with pytest.raises(socket.gaierror):
        Hosts().addresses("none", 80)


def test_the_longest_mirror_is_applied_once():
    mirrors = parse_mirrors("http://=http://127.0.0.1:1/,http://a.example/=https://b.example/?at=")
    hosts = Hosts(mirrors=mirrors, allowed=("127.0.0.1:1",))

    assert hosts.with_mirror("http://a.example/x.jpg?v=1") == "https://b.example/?at=x.jpg?v=1"
    assert hosts.checked_url("HTTP://c.example/x y.jpg?v=1") == "http://127.0.0.1:1/c.example/x%20y.jpg?v=1"
    assert hosts.checked_url("https://c.example/x") == "https://c.example/x"


@pytest.mark.parametrize("url", ["http://10.0.0.1/x", "http://u:p@a.example/", "ftp://a.example/"])
def test_a_mirror_makes_no_bad_url_good(url):
    hosts = Hosts(mirrors=(("http://", "http://b.example/"),))

    with pytest.raises(RefusedUrl):
        hosts.checked_url(url)


def test_a_mirror_is_checked_too():
    hosts = Hosts(mirrors=(("http://", "http://127.0.0.1:1/"),))

    with pytest.raises(RefusedUrl) as caught:
        hosts.checked_url("http://a.example/x")

    assert caught.value.outcome == "refused_address"


def test_settings_are_read():
    assert parse_mirrors("") == ()
    assert parse_allowed(" h , h:80,[::1]:8080") == ("h", "h:80", "[::1]:8080")


@pytest.mark.parametrize("text", ["http://a", "a=b", "http://a=ftp://b", "=http://b"])
def test_a_mirror_that_makes_no_sense_is_refused(text):
    with pytest.raises(UsageError, match="FROM=TO"):
        parse_mirrors(text)


@pytest.mark.parametrize("text", ["http://h", "h:port", "u@h", "::1", "h/x", "*"])
def test_a_host_that_makes_no_sense_is_refused(text):
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_allowed(text)
    with pytest.raises(UsageError, match="HOST:PORT"):
        Hosts(allowed=(text,))


def test_the_policy_and_its_error_travel_between_processes():
    hosts = Hosts(mirrors=(("http://a/", "http://b/"),), allowed=("h:80",))
    error = RefusedUrl("refused_address", "not public")

    assert pickle.loads(pickle.dumps(hosts)) == hosts  # noqa: S301
    assert pickle.loads(pickle.dumps(error)).outcome == "refused_address"  # noqa: S301
