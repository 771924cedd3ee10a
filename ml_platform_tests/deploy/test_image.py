"""The Dockerfile, built without Docker on a new Debian, and each target's health check; takes minutes."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_platform_tests.support.workflow_files import snapshot

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make a root file system"),
    pytest.mark.skipif(
        not (shutil.which("buildah") and shutil.which("debootstrap")), reason="apt-get install buildah debootstrap"
    ),
    pytest.mark.timeout(3_000),
]
HERE = Path(__file__).resolve().parent
TARGETS = ["webserver", "daemon", "code-location", "serving"]
PACKAGES = "ca-certificates,python3,python3-venv"


class Buildah:
    """buildah with its own store; `IMAGE_STORE` names a store that is kept between runs."""

    def __init__(self, folder: Path) -> None:
        self.store = Path(os.environ.get("IMAGE_STORE", folder / "store"))
        self.run_root = folder / "run"

    def __call__(self, *arguments: str) -> str:
        command = ["buildah", "--root", str(self.store), "--runroot", str(self.run_root), "--storage-driver", "overlay"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
        return done.stdout.strip()


def debian(folder: Path) -> Path:
    """Make the root file system of a Debian with Python, from this machine's package mirror."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    root = folder / "debian"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release["VERSION_CODENAME"], str(root), mirror()],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return root


def mirror() -> str:
    said = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True).stdout
    return next(site for site in said.split() if not site.rstrip("/").endswith("security"))


def mounts() -> list[str]:
    """Return the volumes with this machine's pip configuration and certificates."""
    found = [path for path in ("/etc/ssl/certs", "/etc/pip.conf") if Path(path).exists()]
    return [option for path in found for option in ("--volume", f"{path}:{path}:ro")]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    folder = tmp_path_factory.mktemp("image")
    build = Buildah(folder)
    if "localhost/base" not in build("images", "--format", "{{.Name}}"):
        container = build("from", "scratch")
        build("add", "--quiet", container, str(debian(folder)), "/")
        build("commit", "--quiet", "--rm", container, "localhost/base")
    context = folder / "context"
    snapshot(context)
    for target in TARGETS:
        options = ["--isolation", "chroot", "--layers", "--format", "docker", *mounts()]
        options += ["--build-arg", "PYTHON_IMAGE=localhost/base", "--build-arg", f"CODE_REVISION={'a' * 40}"]
        build("bud", *options, "--target", target, "--tag", f"localhost/ml-platform:{target}", str(context))
    yield build
    build("rm", "--all")


def described(buildah: Buildah, target: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", f"localhost/ml-platform:{target}"))
    return dict(config["Docker"]["config"])


@pytest.mark.parametrize("target", TARGETS)
def test_image_target_is_healthy_with_read_only_root(buildah: Buildah, target: str, tmp_path: Path) -> None:
    config = described(buildah, target)
    container = buildah("from", f"localhost/ml-platform:{target}")
    root = buildah("mount", container)
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 10001, 10001)
    plan = {
        "environment": config["Env"],
        "command": [*config["Entrypoint"], *config["Cmd"]],
        "health": config["Healthcheck"]["Test"][1:],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    alone = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*alone, HERE / "run_image_without_docker.sh", root, volume, tmp_path / "plan.json"],
        capture_output=True,
        text=True,
        timeout=900,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "uid=10001" in done.stdout
    assert "CapEff:\t0000000000000000" in done.stdout
    assert done.stdout.splitlines()[-1] == "healthy"


def test_image_is_unprivileged_and_minimal(buildah: Buildah) -> None:
    config = described(buildah, "serving")
    root = Path(buildah("mount", buildah("from", "localhost/ml-platform:serving")))

    assert config["User"] == "10001:10001"
    assert list(config["Volumes"]) == ["/srv/ml-platform/var"]
    assert f"ML_PLATFORM_CODE_REVISION={'a' * 40}" in config["Env"]
    assert sorted(path.name for path in (root / "srv" / "ml-platform").iterdir()) == [
        "README.md",
        "dagster.yaml",
        "data",
        "ml_platform",
        "pyproject.toml",
        "requirements.lock",
        "var",
        "workspace.yaml",
    ]
    writable = [path for path in (root / "srv", root / "opt") for path in path.rglob("*") if _writable(path)]
    assert [str(path.relative_to(root)) for path in writable] == ["srv/ml-platform/var"]


def _writable(path: Path) -> bool:
    status = path.lstat()
    return not path.is_symlink() and (status.st_uid == 10001 or bool(status.st_mode & 0o002))
