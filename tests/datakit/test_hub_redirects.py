"""What the hub's endpoint leads to is checked as everything else is; the endpoint itself is taken as it is named."""

import hashlib
import json
import threading

import huggingface_hub
import pytest
from certificates import server_context
from click.testing import CliRunner
from unruly import in_turn, ranged, reply, unruly_server

from datakit.cli import cli
from datakit.errors import DownloadError
from datakit.web import downloads, hosts, hubclient, transfers
from datakit.web.downloads import download, head
from datakit.web.hosts import Hosts, RefusedUrl
from datakit.web.ranged import RangedFile
from datakit.web.transfers import hub_files

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = "hub://datasets/owner/repo@main/images.tar"
FILE = "/datasets/owner/repo/resolve/main/images.tar"
INFO = "/api/datasets/owner/repo/revision/main"
LINKED = {"X_Linked_Etag": f'"{SHA256}"', "X_Linked_Size": len(BODY), "X_Repo_Commit": COMMIT}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.0)
    monkeypatch.setattr(transfers, "PIECE_BYTES", 10_000)
    with unruly_server() as unruly:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{unruly.place}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield unruly


@pytest.fixture
def inside():
    """A server of the user's own network, which nobody allowed."""
    with unruly_server() as unruly:
        unruly.at("/secret", ranged(BODY, etag=f'"{SHA256}"', X_Repo_Commit=COMMIT))
        yield unruly


@pytest.fixture
def cdn():
    """A server that was allowed."""
    with unruly_server() as unruly:
        unruly.at("/blob", ranged(BODY, etag='"other"'))
        yield unruly


def leads(to, **headers):
    return reply(status=302, Location=to, **headers)


def ways(into, policy):
    """Everything that asks the hub for a file."""
    yield lambda: download(HUB, into, hosts=policy)
    yield lambda: RangedFile(HUB, hosts=policy).fetch(0, 10)


@pytest.mark.parametrize("linked", [LINKED, {}])
def test_a_redirect_to_a_private_address_is_refused_wherever_it_comes(hub, inside, tmp_path, linked):
    secret = f"http://{inside.place}/secret"
    for target in (secret, secret.replace("127.0.0.1", "2130706433"), "http://169.254.169.254/", "file:///etc/passwd"):
        hub.at(FILE, leads(target, **linked))
        for way in ways(tmp_path, Hosts()):
            with pytest.raises(DownloadError) as refused:
                way()
            assert isinstance(refused.value, RefusedUrl) or not linked

    assert inside.visits == []
    assert not list(tmp_path.rglob("images.tar"))


def test_a_chain_of_redirects_is_checked_at_each_link(hub, cdn, inside, tmp_path):
    policy = Hosts(allowed=(cdn.place,))
    hub.at(FILE, leads(f"{FILE}.moved"))
    hub.at(f"{FILE}.moved", leads(cdn.at("/first", leads("/second")), **LINKED))
    cdn.at("/second", leads(f"http://{inside.place}/secret"))

    for way in ways(tmp_path, policy):
        with pytest.raises(RefusedUrl):
            way()
    cdn.at("/second", leads("/blob"))
    done = download(HUB, tmp_path, hosts=policy)

    assert done.sha256 == SHA256
    assert inside.visits == []
    assert {visit.headers.get("authorization") for visit in cdn.visits} == {None}
    assert {visit.headers.get("authorization") for visit in hub.visits} == {"Bearer hf_secret"}


def test_a_name_that_leads_to_a_private_address_is_refused_and_the_checked_one_is_connected_to(
    hub, cdn, tmp_path, monkeypatch
):
    answers = {"inside.example": [["127.0.0.1"]], "changing.example": [["127.0.0.1"]]}
    monkeypatch.setattr(hosts, "look_up", lambda host, port: answers[host].pop(0) if host in answers else [host])

    hub.at(FILE, leads(f"http://inside.example:{cdn.port}/blob", **LINKED))
    with pytest.raises(RefusedUrl, match=r"inside\.example \(127\.0\.0\.1\)"):
        download(HUB, tmp_path, hosts=Hosts())
    assert cdn.visits == []

    hub.at(FILE, leads(f"http://changing.example:{cdn.port}/blob", **LINKED))
    done = download(HUB, tmp_path, hosts=Hosts(allowed=("changing.example",)))
    assert done.sha256 == SHA256
    assert [visit.headers["host"] for visit in cdn.visits] == [f"changing.example:{cdn.port}"]
    assert answers == {"inside.example": [], "changing.example": []}


def test_a_download_that_goes_on_is_not_led_elsewhere(hub, cdn, inside, tmp_path):
    policy = Hosts(allowed=(cdn.place,))

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    hub.at(FILE, leads(f"http://{cdn.place}/blob", **LINKED))
    with pytest.raises(KeyboardInterrupt):
        download(HUB, tmp_path, hosts=policy, tell=interrupt)
    cdn.at("/blob", in_turn(leads(f"http://{inside.place}/secret"), ranged(BODY, etag='"other"')))
    with pytest.raises(RefusedUrl):
        download(HUB, tmp_path, hosts=policy)
    done = download(HUB, tmp_path, hosts=policy)

    assert done.path.read_bytes() == BODY
    assert "range" in cdn.visits[-1].headers
    assert inside.visits == []


def test_parts_of_a_file_are_not_read_from_elsewhere(hub, cdn, inside):
    hub.at(FILE, leads(f"http://{cdn.place}/blob", **LINKED))
    with RangedFile(HUB, hosts=Hosts(allowed=(cdn.place,))) as file:
        cdn.at("/blob", leads(f"http://{inside.place}/secret"))
        with pytest.raises(RefusedUrl):
            file.fetch(0, 10)

    assert inside.visits == []


def test_the_list_of_files_is_not_read_from_elsewhere(hub, cdn, inside):
    info = json.dumps({"id": "owner/repo", "sha": COMMIT, "siblings": []}).encode()
    inside.at(INFO, reply(info, Content_Type="application/json"))
    cdn.at(INFO, reply(info, Content_Type="application/json"))
    hub.at(f"/api/datasets/owner/repo/tree/{COMMIT}", reply(b"[]", Content_Type="application/json"))

    hub.at(INFO, leads(f"http://{inside.place}{INFO}"))
    with pytest.raises(RefusedUrl):
        hub_files("owner/repo", "main", Hosts())
    hub.at(INFO, leads(f"http://{cdn.place}{INFO}"))
    found = hub_files("owner/repo", "main", Hosts(allowed=(cdn.place,)))

    assert found == (COMMIT, {})
    assert inside.visits == []
    assert [visit.headers.get("authorization") for visit in cdn.visits] == [None]


def test_a_repository_is_looked_into_under_the_user_s_settings(hub, cdn, tmp_path):
    info = json.dumps({"id": "owner/repo", "sha": COMMIT, "siblings": []}).encode()
    hub.at(INFO, leads(cdn.at(INFO, reply(info, Content_Type="application/json"))))
    hub.at(f"/api/datasets/owner/repo/tree/{COMMIT}", reply(b"[]", Content_Type="application/json"))
    command = ["add", "mine", "--hub", "owner/repo", "--catalogue", str(tmp_path)]

    refused = CliRunner().invoke(cli, command)
    allowed = CliRunner().invoke(cli, command, env={"DATAKIT_ALLOW_HOSTS": cdn.place})

    assert isinstance(refused.exception, RefusedUrl)
    assert "nothing that is read without a manifest" in str(allowed.exception)


def test_the_endpoint_is_trusted_as_it_is_named_and_not_on_another_port(hub, tmp_path):
    other = hub.door()
    hub.at("/blob", ranged(BODY, etag='"other"'))
    hub.at(FILE, leads(f"http://127.0.0.1:{other}/blob", **LINKED))

    with pytest.raises(RefusedUrl, match=f"DATAKIT_ALLOW_HOSTS=127.0.0.1:{other}"):
        download(HUB, tmp_path, hosts=Hosts())

    assert head(HUB, hosts=Hosts()).sha256 == SHA256


def test_a_hub_of_one_s_own_is_known_by_its_certificate(hub, tmp_path, monkeypatch):
    door = hub.door(tls=server_context(tmp_path, "hub.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "hub.example.pem"))
    monkeypatch.setattr(hosts, "tls", hosts.tls.__wrapped__)
    monkeypatch.setattr(hosts, "look_up", lambda host, port: ["127.0.0.1"])
    hub.at(FILE, ranged(BODY, etag=f'"{SHA256}"', X_Repo_Commit=COMMIT))
    huggingface_hub.close_session()

    monkeypatch.setenv("HF_ENDPOINT", f"https://hub.example:{door}")
    done = download(HUB, tmp_path, hosts=Hosts())
    monkeypatch.setenv("HF_ENDPOINT", f"https://stranger.example:{door}")
    with pytest.raises(DownloadError, match="certificate"):
        head(HUB, hosts=Hosts())
    huggingface_hub.close_session()

    assert done.sha256 == SHA256
    assert {visit.headers["host"] for visit in hub.visits} == {f"hub.example:{door}"}


def test_requests_of_other_libraries_are_left_alone(hub):
    hubclient.hub_library()
    url = hub.at("/x", reply(b"for others"))

    assert huggingface_hub.get_session().get(url).content == b"for others"


def test_threads_that_load_the_hubs_library_at_once_find_it_loaded_once(monkeypatch):
    entered, second = [], threading.Event()
    session = huggingface_hub.get_session

    def get_session():
        entered.append(threading.current_thread())
        (second.set if len(entered) > 1 else lambda: second.wait(0.5))()  # the first lets another one in, if it can
        return session()

    monkeypatch.setattr(huggingface_hub, "get_session", get_session)
    hubclient._hub_library.cache_clear()
    threads = [threading.Thread(target=hubclient.hub_library) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(entered) == 1
