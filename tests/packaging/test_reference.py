"""Reference pages: their generator, its check for drift, links, and texts written by hand."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

from docs.generate import errors, grpc_api, sdk, settings
from docs.generate.__main__ import FOLDER, main
from docs.generate.markdown import anchor
from resnet50_client._status import ERRORS
from resnet50_server.cli.exit_codes import SERVE
from resnet50_server.runtime import fatal
from resnet50_server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(FOLDER.rglob("*.md"))
PAGE = """# Settings

By hand.

<!-- begin: settings (make reference) -->
<!-- end: settings -->

By hand, too.
"""


@pytest.fixture
def folder(tmp_path):
    """Return a folder with one page, and a way to run the generator there."""
    folder = tmp_path / "docs" / "reference"
    folder.mkdir(parents=True)
    (folder / "settings.md").write_text(PAGE)
    return folder


def run(folder: Path, *options: str) -> int:
    return main([*options], folder, {"settings": settings.section})


def test_changed_section_is_named_and_generated_again(folder, capsys):
    assert run(folder) == 0
    assert run(folder, "--check") == 0
    page = folder / "settings.md"
    page.write_text(page.read_text().replace("default `32`", "default `33`"))
    capsys.readouterr()
    assert run(folder, "--check") == 1
    wanted = "docs/reference/settings.md is not what the code generates: run `make reference`"
    assert wanted in capsys.readouterr().err
    assert run(folder) == 0
    assert "default `32`" in page.read_text()
    assert run(folder, "--check") == 0


def test_text_around_a_section_is_kept(folder):
    run(folder)
    text = (folder / "settings.md").read_text()
    assert text.startswith("# Settings\n\nBy hand.\n")
    assert text.endswith("\n\nBy hand, too.\n")
    assert "### max_batch_size" in text


def test_mark_of_an_unknown_section_is_refused(folder):
    (folder / "settings.md").write_text(PAGE.replace("settings", "setings"))
    with pytest.raises(SystemExit, match="no section is called setings"):
        run(folder)


def test_section_that_is_on_no_page_is_named(folder):
    (folder / "settings.md").write_text("# Settings\n")
    with pytest.raises(SystemExit, match=r"no page .* has the section settings"):
        run(folder)


def anchors(text: str) -> Counter[str]:
    """Return the fragments of a page's headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return Counter(anchor(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_of_a_reference_page_are_unique(page):
    assert [name for name, count in anchors(page.read_text()).items() if count > 1] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_of_a_reference_page_skip_no_level(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


MODULES = (
    *("", ".admin", ".lancedb", ".opentelemetry"),
    *(".preprocess", ".testing", ".types", ".video"),
)


def test_every_public_name_of_the_sdk_has_one_heading():
    headings = Counter(
        title
        for page in PAGES
        for title in re.findall(r"^### (\w+)$", page.read_text(), re.MULTILINE)
        if page.name.startswith(("sdk", "errors"))
    )
    names = {
        name
        for module in MODULES
        for name in import_module(f"resnet50_client{module}").__all__
        if not name.startswith("Async") and name != "__version__"
    }
    assert {name for name in names if headings[name] != 1} == set()


def test_signature_has_one_line_per_argument_if_long():
    text = sdk.section("resnet50_client", "Client")
    signature = re.search(r"def classify\(.*?^\)", text, re.DOTALL | re.MULTILINE)[0]
    assert "    image: ImageInput,\n    *,\n    variant: str | None = None,\n" in signature


def test_signature_shows_values_of_constants():
    text = sdk.section("resnet50_client", "Client")
    addresses = "str | Sequence[str]"
    assert f'    server: {addresses} | Callable[[], {addresses}] = "localhost:50051",\n' in text


def test_exceptions_name_their_attributes_and_bases():
    text = errors.section("exceptions")
    assert "class OverloadedError(Resnet50Error)" in text
    assert "* `retry_after_s`: Seconds until the server expects capacity" in text


def test_table_of_codes_says_which_calls_are_retried():
    rows = dict(re.findall(r"^\| `(\w+)` \| \S+ \| (\w+) \|", errors.section("codes"), re.M))
    assert rows["INVALID_ARGUMENT"] == "no"
    assert rows["UNAVAILABLE"] == "yes"
    assert rows["RESOURCE_EXHAUSTED"] == "optional"
    assert set(rows) == {code.name for code in ERRORS}


def test_every_argument_and_option_is_described():
    page = (FOLDER / "command-line.md").read_text()
    rows = re.findall(r"^\| (`.+`) \|(.*)\|$", page, re.MULTILINE)
    assert len(rows) > 100
    assert [name for name, text in rows if not text.strip()] == []


def test_every_exit_code_of_a_fatal_error_is_listed():
    listed = {one.code for one in SERVE}
    kinds = [fatal.FatalError, *fatal.FatalError.__subclasses__()]
    assert {str(kind.status) for kind in kinds} <= listed
    docstring = (ROOT / "server" / "resnet50_server" / "cli" / "serve.py").read_text()
    (returns,) = re.findall(r"Returns:\n(.*?)\"\"\"", docstring, re.DOTALL)
    assert set(re.findall(r"\b(\d{1,2})\b", returns)) <= listed


UNITS = {"": 1, " MiB": 2**20, " million": 10**6, " s": 1}


def test_limits_are_the_defaults_of_the_settings():
    page = (FOLDER / "limits.md").read_text()
    stated = re.findall(r"`(\w+)`, (\d+)( MiB| million| s)?(?=[ ;,|:])", page)
    assert len(stated) > 25
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    wrong = {
        (name, number)
        for name, number, unit in stated
        if defaults[name] not in (None, int(number) * UNITS[unit])
    }
    assert wrong == set()


def test_every_attribute_of_spans_is_documented():
    page = (FOLDER / "spans.md").read_text()
    for path in (
        "server/resnet50_server/telemetry/tracing.py",
        "client/resnet50_client/opentelemetry.py",
    ):
        used = set(
            re.findall(r"\"((?:resnet50|rpc|server|error)\.[\w.]+)\"", (ROOT / path).read_text())
        )
        assert {name for name in used if f"`{name}`" not in page} == set()


def descriptors() -> FileDescriptorSet:
    """Return a small proto with comments, as protoc describes it."""
    found = FileDescriptorSet()
    file = found.file.add(name="a.proto", package=grpc_api.PACKAGE)
    service = file.service.add(name="Zoo")
    service.method.add(
        name="Feed",
        input_type=".resnet50.v1.Food",
        output_type=".google.rpc.Status",
        client_streaming=True,
    )
    message = file.message_type.add(name="Food")
    message.field.add(
        name="kinds",
        type=FieldDescriptorProto.TYPE_ENUM,
        type_name=".resnet50.v1.Kind",
        label=FieldDescriptorProto.LABEL_REPEATED,
    )
    message.oneof_decl.add(name="amount")
    message.field.add(name="grams", type=FieldDescriptorProto.TYPE_UINT32, oneof_index=0)
    file.enum_type.add(name="Kind").value.add(name="KIND_HAY", number=1)
    for path, comment in {
        (2,): " Of animals.\n\n Errors:\n   A_CODE   the food is\n            | bad.\n   OTHER\n",
        (6, 0, 2, 0): " Feeds them\n all.\n",
        (4, 0, 2, 1): " In grams, <1000.\n",
        (5, 0, 2, 0): " Dry grass.\n",
    }.items():
        file.source_code_info.location.add(path=path, leading_comments=comment)
    return found


def test_protos_become_tables_with_links_and_comments():
    text = grpc_api.reference(descriptors())
    for line in (
        "Errors:",
        "| `A_CODE` | the food is \\| bad. |",
        "| `OTHER` |  |",
        "### Feed",
        "stream of [`Food`](#food) → `google.rpc.Status`",
        "Feeds them all.",
        "| `kinds` | repeated [`Kind`](#kind) |  |",
        "| `grams` | `uint32`, one of `amount` | In grams, &lt;1000. |",
        "| `KIND_HAY` | 1 | Dry grass. |",
    ):
        assert line in text.splitlines(), text
    assert "Of animals." not in text


def test_methods_of_a_protocol_become_one_table():
    lines = grpc_api.methods(descriptors()).splitlines()
    row = "| `Feed` | stream of [`Food`](#food) → `google.rpc.Status` | Feeds them all. |"
    assert lines == ["| method | messages | description |", "| --- | --- | --- |", row]
