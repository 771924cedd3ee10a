"""Private parts of Dagster, imported here and nowhere else. Check them when Dagster is upgraded."""

from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, ROOT_RUN_ID_TAG, TICK_ID_TAG
from dagster._utils.schedules import reverse_cron_string_iterator

__all__ = [
    "AUTO_RETRY_RUN_ID_TAG",
    "ROOT_RUN_ID_TAG",
    "TICK_ID_TAG",
    "AssetCheckExecutionRecord",
    "AssetCheckExecutionRecordStatus",
    "AssetCheckExecutionsTable",
    "QueuedRunCoordinator",
    "SqlEventLogStorage",
    "SqliteEventLogStorage",
    "TickStatus",
    "reverse_cron_string_iterator",
]
