"""`ml-platform dev` in a folder of its own, the places where files are dropped for it, and files to drop."""

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

from ml_platform.database import Database
from ml_platform_tests import s3

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 150) -> Any:
    """Ask until the answer is true; fail with the name of what did not come."""
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
    """A landing zone as those see it who drop files of the model churn there; the platform's own code has no part."""

    environment: dict[str, str]

    def drop(self, name: str, data: bytes) -> None:
        """Let a whole file appear."""


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
        self.environment = {**s3.environment(endpoint), "ML_PLATFORM_LANDING_ZONE": f"s3://{s3.BUCKET}/{prefix}"}
        self.endpoint, self.prefix = endpoint, prefix

    def drop(self, name: str, data: bytes) -> None:
        s3.client(self.endpoint).put_object(Bucket=s3.BUCKET, Key=f"{self.prefix}/churn/{name}", Body=data)


class Servers:
    """`ml-platform dev` in a folder of its own."""

    def __init__(self, folder: Path, zone: DropZone) -> None:
        (folder / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        self.folder, self.zone = folder, zone
        home = {"DAGSTER_HOME": str(folder), "ML_PLATFORM_HOME": str(folder / "var")}
        self.dagster, self.mlflow = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        ports = ["--port", self.dagster.rpartition(":")[2], "--mlflow-port", self.mlflow.rpartition(":")[2]]
        (folder / "var").mkdir(exist_ok=True)
        self.database = Database(f"sqlite:///{folder}/var/platform.db")
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
        """Return every arrival that has an outcome, oldest first."""
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
    """A file that must be quarantined: its bytes, why in the words that people read, and the rows that are named."""

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
    """A quarter of the rows have an age that cannot be; 5 % are tolerated."""
    bad = len(rows) // 4
    changed = rows.assign(account_length=[-5] * bad + [*rows["account_length"][bad:]])
    share = f"{bad} of {len(rows)} rows are bad ({bad / len(rows):.1%}, tolerance 5.0%)"
    return Bad(parquet(changed), f"{share}, most often: account_length must be at least 0", named=bad)


def truncated(rows: pd.DataFrame) -> Bad:
    data = parquet(rows)
    return Bad(data[: len(data) // 2], "it is no readable parquet file: Parquet magic bytes not found in footer")


def manifest(data: bytes) -> bytes:
    return json.dumps({"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}).encode()
