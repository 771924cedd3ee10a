"""Shared by assets and triggers: the deployment as Dagster's resource, the tags of runs, a model's partitions."""

import dagster as dg

from ml_platform.orchestration.run_monitoring import PROCESS_TAG, process_tag
from ml_platform.platform import Platform
from ml_platform.system import memory

REASON_TAG = "ml_platform/reason"
ACTOR_TAG = "ml_platform/actor"
MODEL_TAG = "ml_platform/model"
SLOT_TAG = "ml_platform/slot"


class PlatformResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The deployment that the environment describes."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Tag the run with this process, so that its end is detected; the kernel kills it before other processes."""
        run, instance = context.run, context.instance
        if run is None:
            return  # a trigger, in the code server
        memory.prefer_oom_kill()
        if instance and run.tags.get(PROCESS_TAG) != (tag := process_tag(run.run_id)):
            instance.add_run_tags(run.run_id, {PROCESS_TAG: tag})

    def open(self) -> Platform:
        """Return the platform, which opens its databases and files on first use."""
        return Platform()


def arrivals_partition(model: str) -> dg.DynamicPartitionsDefinition:
    """Return the definition of a model's partitions: one dynamic partition for each arrival."""
    return dg.DynamicPartitionsDefinition(name=f"{model}_arrivals")
