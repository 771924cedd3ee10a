"""The pages of docs/reference/ say what the code says."""

import pytest

from ml_platform import model_spec
from ml_platform.settings import Settings
from ml_platform_tests.docs import reference


@pytest.mark.parametrize("name", reference.PAGES)
def test_reference_page_is_current(name: str) -> None:
    current = (reference.FOLDER / name).read_text() == reference.render(name)

    assert current, f"docs/reference/{name} differs from the code. Run: make reference"


def test_every_page_of_the_folder_is_generated() -> None:
    assert {path.name for path in reference.FOLDER.iterdir()} == set(reference.PAGES)


def test_every_command_has_a_section() -> None:
    page = reference.render("cli.md")

    names = [name for _, name, _ in reference.commands()]

    assert len(names) > 20
    assert [name for name in names if f"\n### {name}\n" not in page] == []


def test_every_setting_has_a_meaning() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("name", reference.DECLARATIONS)
def test_every_field_of_a_declaration_is_described(name: str) -> None:
    section = reference.render("model-spec.md").partition(f"\n## {name}\n")[2].partition("\n## ")[0]

    fields = getattr(model_spec, name).model_fields

    assert [field for field in fields if f"\n| `{field}` |" not in section] == []
