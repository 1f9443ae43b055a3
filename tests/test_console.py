import io

import cbor2
import pytest
from rich.table import Table

from appliance.console.plain import plain_console
from appliance.console.run import show_summary, value_text
from appliance.frame import Frame
from appliance.summary import Summary


def emitted(payload: bytes, format: str = "cbor") -> Frame:
    return Frame(0x40, "camera", 0, 0, format, payload)


SUMMARY = Summary(1.0, 1, {}, 1, 1, 0, 0, {}, {"total": 1.0}, {"parts": "running"})


@pytest.mark.parametrize("label", ["[/b]", "[red]x", ":warning:", "[link=x"])
def test_labels_of_others_are_no_markup(label: str) -> None:
    console = plain_console(stderr=False)
    console.file = io.StringIO()
    table = Table("last result")
    table.add_row(value_text(emitted(cbor2.dumps({"label": label}))))
    console.print(table)
    assert label in console.file.getvalue()


def test_a_json_result_is_shown_as_it_is_and_steers_no_terminal() -> None:
    shown = value_text(emitted(b'{"label": "\x1b[2J ok"}\n' + b"x" * 1000, "json"))
    assert shown.startswith('{"label": " [2J ok"} x')
    assert len(shown) == 64


def test_a_value_that_is_no_cbor_can_be_shown() -> None:
    assert value_text(emitted(b"\xff\xff"))


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_the_summary_may_find_nobody_who_reads_it() -> None:
    console = plain_console(stderr=False)
    console.file = Gone()
    show_summary(SUMMARY, console)
