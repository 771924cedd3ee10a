import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from ml_platform.errors import ConfigurationError
from ml_platform.provenance import checked_out, code_revision, has_commit, is_in_history, lock_digest, not_as_locked


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "model.py").write_text("depth = 3\n")
    (root / ".gitignore").write_text("var/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def test_a_clean_checkout_is_named_by_its_commit(checkout: Path) -> None:
    assert code_revision(root=checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_given_revision_wins(checkout: Path) -> None:
    assert code_revision("v1.2", root=checkout) == "v1.2"


def test_a_change_that_is_not_committed_shows_and_is_named_by_its_content(checkout: Path) -> None:
    seen = []
    for text in ("depth = 4\n", "depth = 5\n", "depth = 4\n"):
        (checkout / "model.py").write_text(text)
        seen.append(code_revision(root=checkout))

    commit = git(checkout, "rev-parse", "HEAD")
    assert all(revision.startswith(f"{commit}+") for revision in seen)
    assert seen[0] == seen[2] != seen[1]


def test_a_staged_change_shows(checkout: Path) -> None:
    (checkout / "model.py").write_text("depth = 4\n")
    unstaged = code_revision(root=checkout)
    git(checkout, "add", "model.py")

    assert code_revision(root=checkout) == unstaged


def test_a_file_that_git_does_not_know_shows_with_name_and_content(checkout: Path) -> None:
    seen = {code_revision(root=checkout)}
    for name, text in (("new.py", "a"), ("new.py", "b"), ("newer.py", "b")):
        (checkout / name).write_text(text)
        seen.add(code_revision(root=checkout))
        (checkout / name).unlink()

    assert len(seen) == 4


def test_bytes_that_are_no_utf_8_show_with_name_and_content(checkout: Path) -> None:
    (checkout / "model.py").write_bytes("tiefe = 3  # Bäume\n".encode("latin-1"))
    changed = code_revision(root=checkout)
    name = checkout / os.fsdecode(b"b\xe4ume.py")
    seen = {changed}
    for content in (b"\xff", b"\xfe"):
        name.write_bytes(content)
        seen.add(code_revision(root=checkout))

    assert len(seen) == 3
    assert all("+" in revision for revision in seen)


def test_a_link_is_its_target_and_not_what_lies_there(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("a")
    link, seen = checkout / "link", []
    for target in (tmp_path / "outside", tmp_path / "nothing", tmp_path):
        link.symlink_to(target)
        seen.append(code_revision(root=checkout))
        link.unlink()
    (tmp_path / "outside").write_text("b")
    link.symlink_to(tmp_path / "outside")

    assert len(set(seen)) == 3
    assert code_revision(root=checkout) == seen[0]


def test_a_repository_inside_shows_but_what_it_holds_does_not(checkout: Path) -> None:
    clean = code_revision(root=checkout)
    inner = checkout / "inner"
    inner.mkdir()
    git(inner, "init", "--quiet")
    (inner / "a.py").write_text("a")
    git(inner, "add", ".")
    git(inner, "commit", "--quiet", "--message", "inner")
    before = code_revision(root=checkout)
    (inner / "a.py").write_text("b")

    assert clean != before == code_revision(root=checkout)


def test_an_ignored_file_is_no_change(checkout: Path) -> None:
    (checkout / "var").mkdir()
    (checkout / "var" / "platform.db").write_text("state")

    assert "+" not in code_revision(root=checkout)


def test_going_back_to_the_commit_gives_the_commit_again(checkout: Path) -> None:
    (checkout / "model.py").write_text("depth = 4\n")
    assert "+" in code_revision(root=checkout)
    (checkout / "model.py").write_text("depth = 3\n")

    assert "+" not in code_revision(root=checkout)


def test_a_folder_that_is_no_checkout_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    with pytest.raises(ConfigurationError, match="ML_PLATFORM_CODE_REVISION"):
        code_revision(root=tmp_path)


def test_a_machine_without_git_is_refused_with_advice(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))

    with pytest.raises(ConfigurationError, match="ML_PLATFORM_CODE_REVISION"):
        code_revision(root=checkout)


def test_the_environment_is_named_by_the_bytes_of_its_lock(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_bytes(b"skops==0.16.0\n")

    assert lock_digest(tmp_path) == hashlib.sha256(b"skops==0.16.0\n").hexdigest()


def test_a_missing_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"requirements\.lock is missing"):
        lock_digest(tmp_path)


def test_only_a_whole_hash_names_a_commit(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    tree = git(checkout, "rev-parse", "HEAD^{tree}")

    assert has_commit(commit, checkout)
    for other in ("HEAD", commit[:12], "f" * 40, tree, f"{commit}\n", "--help", ""):
        assert not has_commit(other, checkout)


def test_history_is_head_and_what_it_comes_from(checkout: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "second")
    second = git(checkout, "rev-parse", "HEAD")
    git(checkout, "reset", "--quiet", "--hard", first)

    assert is_in_history(first, checkout)
    assert has_commit(second, checkout)
    assert not is_in_history(second, checkout)


def test_a_commit_is_checked_out_beside_the_checkout_and_removed_again(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "model.py").write_text("depth = 4\n")
    hook = checkout / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {checkout.parent}/hook-ran\n")
    hook.chmod(0o755)

    with checked_out(commit, checkout) as tree:
        assert (tree / "model.py").read_text() == "depth = 3\n"
        (tree / "left.py").write_text("")

    with pytest.raises(KeyError), checked_out(commit, checkout) as other:
        raise KeyError(str(other))

    assert not tree.exists()
    assert not other.exists()
    assert git(checkout, "worktree", "list").count("\n") == 0
    assert (checkout / "model.py").read_text() == "depth = 4\n"
    assert not (checkout.parent / "hook-ran").exists()


def test_what_is_installed_is_held_against_the_lock(tmp_path: Path) -> None:
    from importlib.metadata import version

    right = f"pytest=={version('pytest')} \\\n    --hash=sha256:00\n"
    elsewhere = "none-such==1 ; sys_platform == 'none'\n"
    (tmp_path / "requirements.lock").write_text(f"{right}ruff==0.0.1\nnone-such-either==1\n{elsewhere}")

    assert not_as_locked(tmp_path) == [
        f"ruff {version('ruff')} installed, ==0.0.1 locked",
        "none-such-either not installed, ==1 locked",
    ]
