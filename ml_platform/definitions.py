"""Dagster's code location: the definitions of every model in models/, and those of the whole deployment."""

import logging
import warnings
from collections.abc import Iterable

import dagster as dg

from ml_platform.errors import ConfigurationError, one_line
from ml_platform.models import discovery
from ml_platform.orchestration import maintenance
from ml_platform.orchestration.resources import PlatformResource
from ml_platform.pipeline import model_definitions
from ml_platform.system.file_modes import make_files_private

log = logging.getLogger("ml_platform")


@dg.definitions
def defs() -> dg.Definitions:
    """Assemble the code location.

    A run executes in one process, because each step of Dagster's default executor would import pandas, scikit-learn
    and MLflow again (docs/decisions/0003). A model that cannot be loaded is logged and left out.
    """
    make_files_private()
    location, broken = load_location()
    for name, error in sorted(broken.items()):
        log.error("The model %r was not loaded: %s", name, error)
    return location


def load_location() -> tuple[dg.Definitions, dict[str, Exception]]:
    """Assemble the definitions of every model that can be loaded.

    Returns
    -------
    location : Definitions
    broken : dict of Exception
        The errors of the models that are left out, by name.
    """
    specs, unloaded = discovery.load_all()
    broken: dict[str, Exception] = {**unloaded}
    built = dict[str, dg.Definitions]()
    for spec in specs:
        try:
            # Backfill policies are in beta. Tests notice a change in Dagster; users need no warning.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.BetaWarning)
                built[spec.name] = model_definitions(spec)
        except Exception as error:  # noqa: BLE001 - one broken model must not keep the others from loading
            broken[spec.name] = _add_file(error, spec.name)
    location = _assemble(built.values())
    if _load_error(location) is None:
        return location, broken
    # Dagster refuses one of the models, for instance because of an invalid owner: add them one by one to find it.
    valid = list[dg.Definitions]()
    for name, definitions in built.items():
        if (refusal := _load_error(_assemble([*valid, definitions]))) is None:
            valid.append(definitions)
        else:
            broken[name] = _add_file(refusal, name)
    return _assemble(valid), broken


def _load_error(location: dg.Definitions) -> Exception | None:
    """Return the error with which Dagster refuses a code location; ``None`` if it loads."""
    try:
        location.get_repository_def().load_all_definitions()
    except Exception as error:  # noqa: BLE001 - the caller reports it
        return error
    return None


def _add_file(error: Exception, model: str) -> ConfigurationError:
    text = str(error) if isinstance(error, ConfigurationError) else one_line(error)
    return ConfigurationError(f"ml_platform/models/{model}.py: {text}")


def _assemble(models: Iterable[dg.Definitions]) -> dg.Definitions:
    return dg.Definitions.merge(
        *models,
        dg.Definitions(
            sensors=[maintenance.dead_runs, maintenance.red_ticks, maintenance.failed_runs],
            resources={"platform": PlatformResource()},
            executor=dg.in_process_executor,
        ),
    )
