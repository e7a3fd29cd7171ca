"""The table of docs/families.md, written from what a run of the tests has proved."""

from collections.abc import Mapping
from pathlib import Path

from families import FAMILIES

from scaleup.common.text import markdown

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- families: written by make families -->\n", "<!-- families end -->\n"
COLUMNS = {  # file of tests -> what they prove
    "test_exact": "exact on images",
    "test_tubes_join": "tubes join",
    "test_gate": "gate",
    "test_learns": "train",
    "test_round_trip": "export",
}
PAIRS = [(family.name, tests) for family in FAMILIES for tests in COLUMNS]
Proved = Mapping[tuple[str, str], bool]  # (name of a family's model, file of tests) -> all of its tests passed


def table(proved: Proved) -> str:
    """A row for each family, a column for each file of tests."""
    rows = []
    for family in FAMILIES:
        verdicts = ["yes" if proved[family.name, tests] else "no" for tests in COLUMNS]
        rows.append([family.title, f"`{family.name}`", *verdicts])
    return "\n".join([*markdown(["family", "for example", *COLUMNS.values()], rows), ""])


def current() -> str:
    """The table that stands on the page."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def write(proved: Proved) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(proved) + END + rest.partition(END)[2])
