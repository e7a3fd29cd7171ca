import pytest

from scaleup.common.errors import UserError
from scaleup.common.text import parse_bytes


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("200G", 200e9), ("1.5T", 1.5e12), ("12kB", 12e3), ("12", 12), ("24GiB", 24 * 2**30), ("0.5Mi", 2**19)],
)
def test_amounts_are_read(text: str, bytes: float) -> None:
    assert parse_bytes(text, "--limit") == bytes


@pytest.mark.parametrize("text", ["much", "-1G", "3X", "5i", ""])
def test_what_is_no_amount_is_named(text: str) -> None:
    with pytest.raises(UserError, match=f"--limit '{text}' is not an amount of bytes; write for example 200G"):
        parse_bytes(text, "--limit")
