"""Whose folder it is: what another user may have made is refused, and nothing of another user is changed."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.processes import ROOT, write_config
from shared.config import Config, load
from shared.postgres import database_url, socket_folder
from shared.private import NotPrivate, closed_folder, private_folder
from shared.sockets import ENTERED, IPC_PATH_MAX, PortTaken, ipc, lock_service

SOMEBODY = 12_345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
OURS = f"klagg-{os.geteuid()}"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder as /tmp is, which is the temporary one."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def deep(tmp_path: Path) -> Config:
    """Return a configuration whose folder is too long for sockets."""
    folder = tmp_path / ("d" * IPC_PATH_MAX)
    folder.mkdir()
    return load({"KLAGG_CONFIG": str(write_config(folder))})


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_it_is_made_closed_to_others_whatever_the_mask_and_taken_again(shared: Path) -> None:
    before = os.umask(0)
    try:
        folder = private_folder("compiled", "abc")
    finally:
        os.umask(before)
    assert folder == shared / OURS / "compiled" / "abc"
    assert {mode(path) for path in (folder, folder.parent, folder.parent.parent)} == {0o700}
    assert private_folder("compiled", "abc") == folder


def test_what_others_could_only_read_is_closed(shared: Path) -> None:
    (shared / OURS).mkdir(mode=0o755)
    assert mode(private_folder()) == 0o700


@pytest.mark.parametrize("below", [(), ("compiled",), ("compiled", "abc")])
@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777])
def test_what_others_could_write_is_refused(shared: Path, below: tuple[str, ...], bits: int) -> None:
    folder = private_folder(*below)
    folder.chmod(bits)
    with pytest.raises(NotPrivate, match=f"{folder} can be written by other users"):
        private_folder("compiled", "abc")
    assert mode(folder) == bits


@as_root
@pytest.mark.parametrize("below", [(), ("compiled",), ("compiled", "abc")])
def test_what_another_user_made_is_refused(shared: Path, below: tuple[str, ...]) -> None:
    folder = private_folder(*below)
    os.chown(folder, SOMEBODY, -1)
    with pytest.raises(NotPrivate, match=rf"{folder} belongs to another user \(uid {SOMEBODY}\)"):
        private_folder("compiled", "abc")
    assert folder.stat().st_uid == SOMEBODY


@pytest.mark.parametrize("below", [(), ("compiled",), ("compiled", "abc")])
def test_a_link_is_refused_and_what_it_leads_to_stays_as_it_is(
    shared: Path, tmp_path: Path, below: tuple[str, ...]
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o755)
    link = shared.joinpath(OURS, *below)
    if below:
        private_folder(*below[:-1])
    link.symlink_to(foreign)
    with pytest.raises(NotPrivate, match=f"{link} is a symbolic link"):
        private_folder("compiled", "abc")
    assert mode(foreign) == 0o755
    assert not list(foreign.iterdir())


def test_a_link_to_nothing_and_a_file_are_refused(shared: Path) -> None:
    (shared / OURS).symlink_to(shared / "nothing")
    with pytest.raises(NotPrivate, match="is a symbolic link"):
        private_folder()
    assert not (shared / "nothing").exists()
    (shared / OURS).unlink()
    (shared / OURS).touch()
    with pytest.raises(NotPrivate, match="is no folder"):
        private_folder()


def test_a_folder_where_everybody_may_take_folders_away_is_refused(shared: Path) -> None:
    shared.chmod(0o777)
    with pytest.raises(NotPrivate, match="no sticky bit"):
        private_folder()
    assert not list(shared.iterdir())


def test_a_closed_folder_lies_below_any_other(tmp_path: Path) -> None:
    assert mode(closed_folder(tmp_path, "a", "b")) == 0o700


def test_sockets_of_a_long_folder_are_in_a_private_one(shared: Path, deep: Config, tmp_path: Path) -> None:
    assert Path(ipc(deep.run_path, "events").removeprefix("ipc://")).parent == shared / OURS
    assert socket_folder(deep).parent == shared / OURS
    assert {mode(shared / OURS), mode(socket_folder(deep))} == {0o700}
    shutil.rmtree(shared / OURS)
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o755)
    (shared / OURS).symlink_to(foreign)
    for ask in (lambda: ipc(deep.run_path, "events"), lambda: socket_folder(deep), lambda: database_url(deep)):
        with pytest.raises(NotPrivate):
            ask()
    assert mode(foreign) == 0o755


@pytest.mark.parametrize("room", ["postgres", "engine"])
def test_a_room_whose_sockets_would_lie_in_a_foreign_folder_says_so_and_ends(
    shared: Path, deep: Config, room: str
) -> None:
    (shared / OURS).symlink_to(shared)
    config = Path(deep.base_dir, "klagg.toml")
    environ = {"PATH": os.environ["PATH"], "KLAGG_CONFIG": str(config), "TMPDIR": str(shared)}
    ended = subprocess.run(
        [sys.executable, "-m", f"services.{room}"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 3, ended.stderr
    assert f"{shared / OURS} is a symbolic link" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert shared.stat().st_mode & 0o1777 == 0o1777


class TestCompiled:
    """A checkout that cannot be written, as root's is for everybody else."""

    @pytest.fixture(autouse=True)
    def _checkout(self, tmp_path: Path, shared: Path) -> None:
        self.shared = shared
        self.checkout = tmp_path / "checkout"
        shutil.copytree(ROOT / "shared", self.checkout / "shared", ignore=shutil.ignore_patterns("__pycache__"))
        # Root may write everywhere; a file of the folder's name stops it as well.
        (self.checkout / ".compiled").touch()
        (self.checkout / "asked.py").write_text(
            "import shared.compiled\n"
            "import numba\n"
            "@shared.compiled.compiled\n"
            "def twice(number):\n"
            "    return 2 * number\n"
            "print(numba.config.CACHE_DIR, twice(21))\n",
            encoding="utf-8",
        )

    def ask(self) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "TMPDIR": str(self.shared)}
        return subprocess.run(
            [sys.executable, "asked.py"], cwd=self.checkout, env=environ, capture_output=True, text=True, timeout=120
        )

    def compile(self) -> Path:
        said = self.ask()
        assert said.returncode == 0, said.stderr
        folder, result = said.stdout.split()
        assert result == "42"
        return Path(folder)

    def test_machine_code_is_kept_in_a_private_folder(self) -> None:
        folder = self.compile()
        assert folder.parent == self.shared / OURS / "compiled"
        assert mode(folder) == 0o700
        assert list(folder.rglob("*.nbi"))

    def test_the_checkouts_own_folder_is_taken_where_it_is_ours(self) -> None:
        (self.checkout / ".compiled").unlink()
        assert self.compile().parent == self.checkout / ".compiled"
        (self.checkout / ".compiled").chmod(0o777)
        assert self.compile().parent == self.shared / OURS / "compiled"

    @pytest.mark.parametrize("how", ["written", "link", pytest.param("owned", marks=as_root)])
    def test_nothing_is_loaded_from_a_folder_that_another_user_may_have_made(self, how: str) -> None:
        folder = self.compile()
        proof = self.shared / "proof"
        for index in folder.rglob("*.nbi"):
            # numba reads a pickle first; this one makes a folder.
            index.write_bytes(pickle.dumps(_Attack(str(proof))))
        ours = self.shared / OURS
        if how == "written":
            ours.chmod(0o777)
        elif how == "link":
            ours.rename(self.shared / "theirs")
            ours.symlink_to(self.shared / "theirs")
        else:
            os.chown(ours, SOMEBODY, -1)
        said = self.ask()
        assert said.returncode == 1
        assert "klagg: there is no folder to keep compiled functions in" in said.stderr
        assert "Traceback" not in said.stderr
        assert not proof.exists()

    def test_the_attack_would_work(self) -> None:
        # Otherwise the test above could not fail.
        proof = self.shared / "proof"
        for index in self.compile().rglob("*.nbi"):
            index.write_bytes(pickle.dumps(_Attack(str(proof))))
        self.ask()
        assert proof.exists()


class _Attack:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("umask", [0, 0o77])
def test_locks_and_their_folder_are_this_users_own_whatever_they_were(tmp_path: Path, umask: int) -> None:
    run = tmp_path / "data" / "run"
    for _ in range(2):
        before = os.umask(umask)
        try:
            with lock_service(run, "engine") as held, pytest.raises(PortTaken, match=str(os.getpid())):
                assert lock_service(run, "engine") is not held
        finally:
            os.umask(before)
        assert mode_of(run) == 0o700
        assert mode_of(run / "engine.lock") == 0o600
        # As an older klagg made them.
        run.chmod(0o755)
        (run / "engine.lock").chmod(0o644)


def test_a_folder_that_another_user_of_the_database_enters_stays_so(tmp_path: Path) -> None:
    tmp_path.chmod(ENTERED)
    lock_service(tmp_path, "engine").close()
    assert mode_of(tmp_path) == ENTERED


def test_a_lock_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotPrivate, match=r"engine\.lock cannot be made this user's own"):
        lock_service(tmp_path, "engine")
    assert not (tmp_path / "elsewhere").exists()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777
