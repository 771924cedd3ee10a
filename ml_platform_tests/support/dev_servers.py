"""`ml-platform dev` in a new folder, its landing zones, and files to drop."""

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pytest
from deltalake import DeltaTable

from ml_platform.database import PlatformDatabase
from ml_platform.settings import PROJECT_ROOT
from ml_platform_tests.support import s3_server

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 300) -> Any:
    """Poll until the condition is true, and return its value; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.2)
    pytest.fail(f"{what} did not come within {seconds} s")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - loopback
            return bool(response.status == 200)
    except OSError:
        return False


class DropZone(Protocol):
    """A landing zone from outside: files of the model churn are dropped without the platform's own code."""

    environment: dict[str, str]

    def drop(self, name: str, data: bytes) -> None:
        """Drop a complete file."""


class Folder:
    def __init__(self, folder: Path) -> None:
        self.environment = {"ML_PLATFORM_LANDING_ZONE": str(folder)}
        self.folder = folder / "churn"
        self.folder.mkdir(parents=True, exist_ok=True)

    def drop(self, name: str, data: bytes) -> None:
        hidden = self.folder / f".{name}"
        hidden.write_bytes(data)
        hidden.rename(self.folder / name)


class Bucket:
    def __init__(self, endpoint: str, prefix: str) -> None:
        self.environment = {
            **s3_server.environment(endpoint),
            "ML_PLATFORM_LANDING_ZONE": f"s3://{s3_server.BUCKET}/{prefix}",
        }
        self.endpoint, self.prefix = endpoint, prefix

    def drop(self, name: str, data: bytes) -> None:
        s3_server.client(self.endpoint).put_object(
            Bucket=s3_server.BUCKET, Key=f"{self.prefix}/churn/{name}", Body=data
        )


class Servers:
    """A running `ml-platform dev` in a folder."""

    def __init__(self, folder: Path, zone: DropZone) -> None:
        (folder / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml").read_text())
        self.folder, self.zone = folder, zone
        home = {"DAGSTER_HOME": str(folder), "ML_PLATFORM_HOME": str(folder / "var")}
        self.dagster, self.mlflow = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        ports = ["--port", self.dagster.rpartition(":")[2], "--mlflow-port", self.mlflow.rpartition(":")[2]]
        (folder / "var").mkdir(exist_ok=True)
        self.database = PlatformDatabase(f"sqlite:///{folder}/var/platform.db")
        self.log = folder / "servers.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(BIN / "ml-platform"), "dev", *ports],
                env={**os.environ, **home, **zone.environment},
                stdout=log,
                stderr=log,
            )

    def answers_or_ended(self, url: str) -> bool:
        return self.process.poll() is not None or answers(url)

    def champion(self) -> int | None:
        entry = self.database.champion("churn")
        return entry.version if entry else None

    def outcomes(self) -> list[dict[str, Any]]:
        """Return the arrivals with an outcome, oldest first."""
        return self.database.arrival_outcomes("churn")

    def rows(self, table: str) -> pd.DataFrame:
        """Return the table `rows` or `quarantine` of the model churn."""
        path = self.folder / "var" / "models" / "churn" / table
        rows: pd.DataFrame = DeltaTable(str(path)).to_pyarrow_table().to_pandas()
        return rows

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@dataclass(frozen=True)
class Bad:
    """A file that must be quarantined: its bytes, the start of the reason, and the number of quarantined rows."""

    data: bytes
    reason: str
    named: int = 1


def parquet(rows: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()


def without_a_column(rows: pd.DataFrame) -> Bad:
    return Bad(parquet(rows.drop(columns="state")), "column 'state' is missing")


def out_of_range(rows: pd.DataFrame) -> Bad:
    """Return a file in which a quarter of the rows have an impossible age; 5 % are tolerated."""
    bad = len(rows) // 4
    changed = rows.assign(account_length=[-5] * bad + [*rows["account_length"][bad:]])
    share = f"{bad} of {len(rows)} rows are bad ({bad / len(rows):.1%}, tolerance 5.0%)"
    return Bad(parquet(changed), f"{share}, most often: account_length must be at least 0", named=bad)


def truncated(rows: pd.DataFrame) -> Bad:
    data = parquet(rows)
    return Bad(data[: len(data) // 2], "it is no readable parquet file: Parquet magic bytes not found in footer")


def manifest(data: bytes) -> bytes:
    return json.dumps({"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}).encode()
