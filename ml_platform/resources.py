"""What assets and triggers share: the deployment as Dagster's resource, the tags of runs, a model's partitions."""

import dagster as dg

from ml_platform import memory
from ml_platform.liveness import PROCESS_TAG, process_tag
from ml_platform.workflows import Platform

REASON_TAG = "ml_platform/reason"
ACTOR_TAG = "ml_platform/actor"
MODEL_TAG = "ml_platform/model"
SLOT_TAG = "ml_platform/slot"


class PlatformResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The deployment that the environment describes."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Note which process executes a run, so that others can tell when it has died, and let it die before them."""
        run, instance = context.run, context.instance
        if run is None:
            return  # a trigger, in the code server
        memory.die_first()
        if instance and run.tags.get(PROCESS_TAG) != (tag := process_tag(run.run_id)):
            instance.add_run_tags(run.run_id, {PROCESS_TAG: tag})

    def open(self) -> Platform:
        """Return the platform; nothing is opened before it is needed."""
        return Platform()


def arrivals_partition(model: str) -> dg.DynamicPartitionsDefinition:
    """Return a model's arrivals as Dagster knows them: one dynamic partition each."""
    return dg.DynamicPartitionsDefinition(name=f"{model}_arrivals")
