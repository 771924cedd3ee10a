import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from ml_platform.errors import ConfigurationError
from ml_platform.training.provenance import (
    checked_out,
    code_revision,
    find_lock_mismatches,
    has_commit,
    is_in_history,
    lock_digest,
)


def git(root: Path, *arguments: str) -> str:
    author = ["-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(root), *author, *arguments], check=True, capture_output=True, text=True)
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


def test_clean_checkout_revision_is_commit(checkout: Path) -> None:
    assert code_revision(root=checkout) == git(checkout, "rev-parse", "HEAD")


def test_given_revision_names_code_without_checkout(tmp_path: Path) -> None:
    assert code_revision("v1.2", root=tmp_path) == "v1.2"


@pytest.mark.fault("A3")
def test_given_revision_does_not_rename_checkout(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")

    assert code_revision("0" * 40, root=checkout) == commit
    (checkout / "model.py").write_text("depth = 4\n")
    assert code_revision(commit, root=checkout).startswith(f"{commit}+")


@pytest.mark.fault("A3")
def test_variables_of_git_do_not_rename_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = checkout.parent / "other"
    git(checkout.parent, "clone", "--quiet", str(checkout), str(other))
    git(other, "commit", "--quiet", "--allow-empty", "--message", "other")
    (checkout / "new.py").write_text("depth = 5\n")
    (checkout.parent / "ignored").write_text("new.py\n")
    right = code_revision(root=checkout)
    variables = {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.excludesFile",
        "GIT_CONFIG_VALUE_0": str(checkout.parent / "ignored"),
    }

    assert "+" in right
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert code_revision(root=checkout) == right


@pytest.mark.fault("A3")
def test_folder_within_other_repository_is_no_checkout(checkout: Path) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()

    with pytest.raises(ConfigurationError, match=r"no git checkout.*Set ML_PLATFORM_CODE_REVISION"):
        code_revision(root=installed)


def test_uncommitted_change_adds_digest_of_content(checkout: Path) -> None:
    revisions = []
    for text in ("depth = 4\n", "depth = 5\n", "depth = 4\n"):
        (checkout / "model.py").write_text(text)
        revisions.append(code_revision(root=checkout))

    commit = git(checkout, "rev-parse", "HEAD")
    assert all(revision.startswith(f"{commit}+") for revision in revisions)
    assert revisions[0] == revisions[2] != revisions[1]


def test_staged_change_counts_as_unstaged(checkout: Path) -> None:
    (checkout / "model.py").write_text("depth = 4\n")
    unstaged = code_revision(root=checkout)
    git(checkout, "add", "model.py")

    assert code_revision(root=checkout) == unstaged


def test_untracked_file_name_and_content_change_revision(checkout: Path) -> None:
    revisions = {code_revision(root=checkout)}
    for name, text in (("new.py", "a"), ("new.py", "b"), ("newer.py", "b")):
        (checkout / name).write_text(text)
        revisions.add(code_revision(root=checkout))
        (checkout / name).unlink()

    assert len(revisions) == 4


def test_non_utf8_name_and_content_change_revision(checkout: Path) -> None:
    (checkout / "model.py").write_bytes("tiefe = 3  # Bäume\n".encode("latin-1"))
    changed = code_revision(root=checkout)
    name = checkout / os.fsdecode(b"b\xe4ume.py")
    revisions = {changed}
    for content in (b"\xff", b"\xfe"):
        name.write_bytes(content)
        revisions.add(code_revision(root=checkout))

    assert len(revisions) == 3
    assert all("+" in revision for revision in revisions)


def test_link_counts_as_target_path_not_content(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("a")
    link, revisions = checkout / "link", []
    for target in (tmp_path / "outside", tmp_path / "nothing", tmp_path):
        link.symlink_to(target)
        revisions.append(code_revision(root=checkout))
        link.unlink()
    (tmp_path / "outside").write_text("b")
    link.symlink_to(tmp_path / "outside")

    assert len(set(revisions)) == 3
    assert code_revision(root=checkout) == revisions[0]


def test_inner_repository_counts_without_its_content(checkout: Path) -> None:
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


def test_ignored_file_is_no_change(checkout: Path) -> None:
    (checkout / "var").mkdir()
    (checkout / "var" / "platform.db").write_text("state")

    assert "+" not in code_revision(root=checkout)


def test_reverted_change_gives_commit_again(checkout: Path) -> None:
    (checkout / "model.py").write_text("depth = 4\n")
    assert "+" in code_revision(root=checkout)
    (checkout / "model.py").write_text("depth = 3\n")

    assert "+" not in code_revision(root=checkout)


def test_folder_without_checkout_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ML_PLATFORM_CODE_REVISION"):
        code_revision(root=tmp_path)


def test_missing_git_is_refused_with_advice(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))

    with pytest.raises(ConfigurationError, match="install git"):
        code_revision("v1.2", root=checkout)


def test_lock_digest_is_sha256_of_lock(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_bytes(b"skops==0.16.0\n")

    assert lock_digest(tmp_path) == hashlib.sha256(b"skops==0.16.0\n").hexdigest()


def test_missing_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"requirements\.lock is missing"):
        lock_digest(tmp_path)


def test_has_commit_accepts_full_hash_only(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    tree = git(checkout, "rev-parse", "HEAD^{tree}")

    assert has_commit(commit, checkout)
    for other in ("HEAD", commit[:12], "f" * 40, tree, f"{commit}\n", "--help", ""):
        assert not has_commit(other, checkout)


def test_history_is_head_and_its_ancestors(checkout: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "second")
    second = git(checkout, "rev-parse", "HEAD")
    git(checkout, "reset", "--quiet", "--hard", first)

    assert is_in_history(first, checkout)
    assert has_commit(second, checkout)
    assert not is_in_history(second, checkout)


def test_commit_is_checked_out_without_hooks_and_removed(checkout: Path) -> None:
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


def test_installed_versions_are_compared_with_lock(tmp_path: Path) -> None:
    from importlib.metadata import version

    installed = f"pytest=={version('pytest')} \\\n    --hash=sha256:00\n"
    other_system = "none-such==1 ; sys_platform == 'none'\n"
    (tmp_path / "requirements.lock").write_text(f"{installed}ruff==0.0.1\nnone-such-either==1\n{other_system}")

    assert find_lock_mismatches(tmp_path) == [
        f"ruff {version('ruff')} installed, ==0.0.1 locked",
        "none-such-either not installed, ==1 locked",
    ]
