"""The documentation tells the truth: its programs run and print what it says, its links lead somewhere."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import doc_pages
from areal_core.config import InferenceEngineConfig
from children import RunScript
from doc_pages import DOCS, ROOT, Program, anchors, named, pages, programs

pytestmark = pytest.mark.any_loop

PAGES = pages()
PROGRAMS = [program for page in PAGES for program in programs(page)]
NAV = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
REFERENCE = {
    module: page
    for page in (DOCS / "reference").glob("*.md")
    for module in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
}

LONG_RUNS = (DOCS / "guides" / "long-runs.md").read_text()
# Between the blocks of a program.
MARK = "\x1e"
NEXT = f"print({MARK!r}, flush=True)\n"

each_page = pytest.mark.parametrize("page", PAGES, ids=named)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_in_the_documentation_prints_and_logs_what_its_page_says(
    run_script: RunScript, tmp_path: Path, program: Program
) -> None:
    code = NEXT.join(block.code for block in program.blocks)
    if "DistributedWorkflowExecutor" in code and find_spec("ray") is None:
        pytest.skip("the extra ray is not installed")
    for name, text in program.files.items():
        (tmp_path / name).write_text(text)
    done = run_script(code, timeout=50.0)

    logged = "".join(block.logged for block in program.blocks)
    assert _agrees(done.stderr, logged), f"it logged\n{done.stderr}"
    parts = done.stdout.split(f"{MARK}\n")
    assert len(parts) == len(program.blocks)
    for part, block in zip(parts, program.blocks, strict=True):
        assert _agrees(part, block.printed), f"it printed\n{part}"
    assert done.returncode == 0


@each_page
def test_no_python_in_the_documentation_goes_unread(page: Path) -> None:
    assert doc_pages.count_of_blocks(page) == doc_pages.count_of_read_blocks(page)


def test_every_guide_has_a_program() -> None:
    without = {page.name for page in (DOCS / "guides").glob("*.md") if not programs(page)}
    assert without == {"from-areal.md"}  # a table by name


@each_page
def test_every_link_leads_to_a_page_and_to_a_heading_of_it(page: Path) -> None:
    lost = [
        f"{target}#{anchor}"
        for target, anchor in doc_pages.links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert lost == []


@each_page
def test_every_name_that_is_linked_is_in_the_reference(page: Path) -> None:
    assert [name for name in doc_pages.names(page) if not _is_in_the_reference(name)] == []


@each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    assert [place for place in doc_pages.places(page) if not (ROOT / place).exists()] == []


def test_every_page_is_in_the_menu_once() -> None:
    assert sorted(re.findall(r"([\w/-]+\.md)$", NAV, re.MULTILINE)) == sorted(map(named, PAGES))


def test_every_public_module_is_in_the_reference() -> None:
    package = ROOT / "areal_core"
    public = {path.stem for path in package.iterdir() if re.fullmatch(r"[a-z]\w*(\.py)?", path.name)}
    expected = {f"areal_core.{name}" for name in public}
    assert REFERENCE.keys() == expected | {"areal_core.embedded.pytest_plugin"}


@pytest.mark.parametrize("module", sorted(REFERENCE))
def test_the_reference_of_a_module_has_all_of_it_that_is_public(module: str) -> None:
    listed = re.findall(r"^ {8}- (\w+)$", REFERENCE[module].read_text(), re.MULTILINE)
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None)
    if names is None:
        names = [name for name, value in vars(found).items() if getattr(value, "__module__", "") == module]
    assert sorted(listed) == sorted(names)


def test_every_picture_is_shown_somewhere() -> None:
    shown = {target for page in PAGES for target, _ in doc_pages.links(page)}
    assert [path for path in (DOCS / "pictures").iterdir() if path not in shown] == []


def test_the_table_of_timeouts_has_the_settings_and_their_defaults() -> None:
    config = InferenceEngineConfig()
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+|none) \|", LONG_RUNS, re.MULTILINE)
    assert len(rows) == 10
    told = {name: None if default == "none" else float(default) for name, default in rows}
    assert told == {name: getattr(config, name) for name in told}


def test_every_event_that_is_to_be_watched_is_logged_somewhere() -> None:
    table = LONG_RUNS.partition("| Event | It means |")[2].partition("\n\n")[0]
    events = re.findall(r"`(\w+_\w+)`", "".join(row.split("|")[1] for row in table.splitlines() if row))
    code = "".join(path.read_text() for path in (ROOT / "areal_core").rglob("*.py"))
    assert len(events) > 10
    assert [event for event in events if f'"{event}"' not in code] == []


def _agrees(said: str, promised: str) -> bool:
    return re.fullmatch(doc_pages.pattern_of(promised), said, re.DOTALL) is not None


def _is_in_the_reference(name: str) -> bool:
    """Return whether *name* is a documented module, or something public in one, or of such a class."""
    module = max((known for known in REFERENCE if f"{name}.".startswith(f"{known}.")), key=len, default="")
    if not module:
        return False
    found = importlib.import_module(module)
    first, *rest = name.removeprefix(module).removeprefix(".").split(".")
    if not first:
        return True
    if first not in getattr(found, "__all__", dir(found)):
        return False
    thing = getattr(found, first)
    for part in rest:
        if part in getattr(thing, "__annotations__", ()):
            return part == rest[-1]
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True
