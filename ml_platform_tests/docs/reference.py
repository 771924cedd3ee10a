"""`make reference`: write the pages of docs/reference/ from the code that they describe."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from ml_platform import model_spec
from ml_platform.cli import PANELS, app
from ml_platform.evaluation.gates import PLAUSIBLE
from ml_platform.model_spec import BASELINES, METRICS
from ml_platform.settings import PROJECT_ROOT, Settings

FOLDER = PROJECT_ROOT / "docs" / "reference"
NOTICE = "<!-- Generated from the code. Change the code, then run: make reference -->"
DECLARATIONS = (
    "ModelSpec",
    "Gate",
    "Equals",
    "InRange",
    "Comparison",
    "GoldenSet",
    "Approval",
    "Rollout",
    "Retraining",
)
EXAMPLE = re.compile(r"Example: (ml-platform .+?)(?=\n\n|\Z)", flags=re.DOTALL)
OTHER_VARIABLES = {
    "DAGSTER_HOME": "Folder of `dagster.yaml`; required by commands that launch a run, and by Dagster's own.",
    "AWS_ACCESS_KEY_ID": "Key of an S3 landing zone, with `AWS_SECRET_ACCESS_KEY` and `AWS_DEFAULT_REGION`.",
    "AWS_ENDPOINT_URL": "Address of an S3 service other than Amazon's.",
    "MLFLOW_TRACKING_TOKEN": "Credential of MLflow's client, or `MLFLOW_TRACKING_USERNAME` and "
    "`MLFLOW_TRACKING_PASSWORD`; removed from every message.",
    "GITHUB_ACTIONS": "Set by GitHub's runners, with `GITHUB_ACTOR`, `GITHUB_TRIGGERING_ACTOR` and `GITHUB_RUN_ID`: "
    "the actor of a job. Any process can set them.",
    "ACTIONS_ID_TOKEN_REQUEST_URL": "Set by GitHub's runners for a job with `id-token: write`, with "
    "`ACTIONS_ID_TOKEN_REQUEST_TOKEN`: the service that issues the job's signed token.",
}
# "name : type" of a numpydoc section, then its indented lines.
PARAMETER = re.compile(r"^(?P<names>[a-z0-9_, ]+) : (?P<type>.+)\n(?P<text>(?:    .*\n)*)", flags=re.MULTILINE)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, or an empty string if it has no rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    cells = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines]
    return "\n".join(f"| {line} |" for line in cells)


# The command line


def commands() -> Iterator[tuple[str, str, Any]]:
    """Yield each command: its panel, its full name and typer's object; members of groups instead of groups."""
    declared: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    for panel, names in PANELS.items():
        for name in names:
            members: dict[str, Any] = getattr(declared[name], "commands", {})
            if not members:
                yield panel, name, declared[name]
            for member, command in members.items():
                yield panel, f"{name} {member}", command


def is_option(parameter: Any) -> bool:
    """Return True if a parameter is an option, False if it is an argument."""
    return bool(parameter.param_type_name == "option")


def option_names(parameter: Any) -> list[str]:
    """Return every spelling of an option."""
    return [*parameter.opts, *parameter.secondary_opts]


def cli_page() -> list[str]:
    """Return the blocks of docs/reference/cli.md."""
    epilogue = (inspect.getdoc(sys.modules["ml_platform.cli"]) or "").partition("\n\n")[2]
    page = [
        "# Command line",
        NOTICE,
        epilogue,
        "`--json` prints a result as JSON, for programs. `--help` behind a command prints its part of this page.",
    ]
    previous = ""
    for panel, name, command in commands():
        page += [f"## {panel}"] if panel != previous else []
        page.append(_command_section(name, command))
        previous = panel
    return page


def _command_section(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if not is_option(parameter)]
    options = [parameter for parameter in command.params if is_option(parameter) and not parameter.hidden]
    words = [_argument_word(argument) for argument in arguments]
    required = [f"{option.opts[0]} {_value_word(option)}" for option in options if option.required]
    rest = ["[OPTIONS]"] if len(options) > len(required) else []
    rows = [[f"`{_argument_word(argument)}`", "", argument.help or ""] for argument in arguments]
    rows += [[_option_cell(option), _default_cell(option), option.help or ""] for option in options]
    parts = [
        f"### {name}",
        EXAMPLE.sub(lambda match: f"Example: `{' '.join(match[1].split())}`", inspect.cleandoc(command.help or "")),
        f"```text\nml-platform {' '.join([name, *words, *required, *rest])}\n```",
        table(["argument or option", "default", "meaning"], rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _argument_word(argument: Any) -> str:
    word = argument.name.upper() + ("…" if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def _value_word(option: Any) -> str:
    annotation = option.type_descriptor.annotation
    (kind,) = getattr(annotation, "__args__", (annotation,))
    return {"int": "N", "float": "N", "Path": "PATH"}.get(kind.__name__, "TEXT")


def _option_cell(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in option_names(option))
    return names if option.is_bool_flag else f"{names} {_value_word(option)}"


def _default_cell(option: Any) -> str:
    if option.required:
        return "required"
    return "" if option.default in (None, "", (), False) else f"`{option.default}`"


# The environment


def configuration_page() -> list[str]:
    """Return the blocks of docs/reference/configuration.md."""
    rows = []
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"ML_PLATFORM_{name.upper()}"
        meaning = _markdown(field.description or "").replace("`None`", "Unset")
        rows.append([f"`{variable}`", _setting_type(field.annotation), _setting_default(field.default), meaning])
    return [
        "# Configuration",
        NOTICE,
        "The platform reads its settings from environment variables. A value that cannot work, and a variable "
        "`ML_PLATFORM_…` that is not in this table, stop a command with exit status 2; the message names the variable. "
        "An empty variable counts as unset. Values of type *secret* are never printed.",
        table(["variable", "type", "default", "meaning"], rows),
        "Variables of other tools:",
        table(["variable", "meaning"], [[f"`{name}`", meaning] for name, meaning in OTHER_VARIABLES.items()]),
        "[Deployment](../how-to/deployment.md) shows which to set.",
    ]


def _setting_type(annotation: Any) -> str:
    kinds = [kind for kind in getattr(annotation, "__args__", (annotation,)) if kind is not type(None)]
    names = {"SecretStr": "secret", "Path": "absolute path", "str": "text", "int": "integer", "float": "number"}
    return ", ".join(names[kind.__name__] for kind in kinds)


def _setting_default(default: Any) -> str:
    if isinstance(default, Path):
        return f"`{default.relative_to(PROJECT_ROOT)}/` in the checkout"
    return "unset" if default in (None, "") else f"`{default}`"


# The declaration of a model


def model_spec_page() -> list[str]:
    """Return the blocks of docs/reference/model-spec.md."""
    metrics = [[f"`{task}`", ", ".join(f"`{name}`" for name in names)] for task, names in METRICS.items()]
    baselines = [[f"`{task}`", ", ".join(f"`{name}`" for name in names)] for task, names in BASELINES.items()]
    costs = ", ".join(f"`{name}`" for name in PLAUSIBLE if not any(name in names for names in METRICS.values()))
    return [
        "# Model specification",
        NOTICE,
        "Import these classes from `ml_platform.model_spec`. Their arguments are keywords; an unknown argument is an "
        "error. [Add a model](../how-to/add-a-model.md) shows them in use.",
        *[_declaration_section(name) for name in DECLARATIONS],
        "## Metrics",
        table(["task", "metrics"], metrics),
        f"Metrics of every task: {costs}.",
        "## Baselines",
        table(["task", "strategies; the first is the default"], baselines),
    ]


def _declaration_section(name: str) -> str:
    declared = getattr(model_spec, name)
    summary, _, parameters = (inspect.getdoc(declared) or "").partition("Parameters\n----------\n")
    rows = []
    for match in PARAMETER.finditer(f"{parameters}\n"):
        for field in match["names"].split(", "):
            text = " ".join(match["text"].split())
            rows.append([f"`{field}`", match["type"], _field_default(declared.model_fields[field]), _markdown(text)])
    return f"## {name}\n\n{_markdown(summary.strip())}\n\n" + table(["field", "type", "default", "meaning"], rows)


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _field_default(field: Any) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, tuple) and field.default and isinstance(field.default[0], model_spec.Gate):
        return ", ".join(f"`{gate.condition}`" for gate in field.default)
    return (
        f"`{field.default!r}`"
        if isinstance(field.default, str | int | float | tuple | None)
        else f"`{type(field.default).__name__}()`"
    )


def render(name: str) -> str:
    """Return the text of a page."""
    return "\n\n".join(PAGES[name]()) + "\n"


PAGES = {"cli.md": cli_page, "configuration.md": configuration_page, "model-spec.md": model_spec_page}


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(exist_ok=True)
    for name in PAGES:
        (FOLDER / name).write_text(render(name))


if __name__ == "__main__":
    main()
