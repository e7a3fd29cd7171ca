from pathlib import Path

from families import FAMILIES
from families_page import COLUMNS, PAIRS, current, table


def test_the_page_lists_what_is_tested_and_nothing_else() -> None:
    """Whether the tests pass, they say themselves; a table that says no is that of a broken tree."""
    assert current() == table(dict.fromkeys(PAIRS, True))


def test_every_file_of_tests_is_a_column() -> None:
    files = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    assert files - COLUMNS.keys() == {"test_refused", "test_families_page", "test_traced"} and COLUMNS.keys() < files


def test_no_two_families_are_the_same() -> None:
    assert len({family.id for family in FAMILIES}) == len(FAMILIES)
