import logging
import re

import pytest
import termcolor

from bevkd2.d2 import create_small_table, log_every_n_seconds, log_first_n, setup_logger


@pytest.fixture
def name(request):
    name = f"bevkd2_test_{request.node.name}"
    yield name
    for handler in list(logging.getLogger(name).handlers):
        logging.getLogger(name).removeHandler(handler)


def test_console_and_file(name, tmp_path, capsys):
    logger = setup_logger(str(tmp_path / "new"), name=name, abbrev_name="short", color=False)
    assert logger is logging.getLogger(name)
    assert logger.propagate is False
    logging.getLogger(f"{name}.part").info("hello")
    logger.warning("careful")
    date = r"\[\d\d/\d\d \d\d:\d\d:\d\d\]"
    expected = rf"{date} {name}\.part INFO: hello\n{date} {name} WARNING: careful\n"
    assert re.fullmatch(expected, (tmp_path / "new" / "log.txt").read_text())
    assert re.fullmatch(expected, capsys.readouterr().out)


@pytest.fixture
def forced_color(monkeypatch):
    """Colours although the output is no terminal; termcolor decides once per process and keeps the result."""
    decide = getattr(termcolor.termcolor, "can_colorize", None)
    forget = getattr(decide, "cache_clear", lambda: None)  # older releases keep nothing
    monkeypatch.setenv("FORCE_COLOR", "1")
    forget()
    yield
    forget()


def test_colours_and_short_name(name, capsys, forced_color):
    setup_logger(name=name, abbrev_name="short")
    logging.getLogger(f"{name}.part").info("hello")
    logging.getLogger(f"{name}.part").error("bad")
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\x1b\[32m\[\d\d/\d\d \d\d:\d\d:\d\d short\.part\]: \x1b\[0mhello", first)
    assert "ERROR" in second.split("short.part")[0]


def test_same_call_adds_no_second_handler(name):
    assert setup_logger(name=name) is setup_logger(name=name)
    assert len(logging.getLogger(name).handlers) == 1


def test_other_processes_write_their_own_file(name, tmp_path, capsys):
    logger = setup_logger(str(tmp_path), 2, name=name)
    logger.info("from rank 2")
    assert "from rank 2" in (tmp_path / "log.txt.rank2").read_text()
    assert capsys.readouterr().out == ""


def test_file_name_and_shared_stream(name, tmp_path):
    path = str(tmp_path / "sub" / "train.log")
    setup_logger(path, name=name, configure_stdout=False)
    setup_logger(path, name=f"{name}.below", configure_stdout=False, enable_propagation=True)
    logging.getLogger(f"{name}.below").info("twice")
    assert (tmp_path / "sub" / "train.log").read_text().count("twice") == 2


def test_log_first_n(caplog):
    with caplog.at_level(logging.INFO):
        for i in range(4):
            log_first_n(logging.INFO, f"place {i}", n=2)
            log_first_n(logging.INFO, f"message {i % 2}", key="message")
            log_first_n(logging.INFO, f"both {i % 2}", key=("caller", "message"), name="elsewhere")
    assert sorted(caplog.messages) == ["both 0", "both 1", "message 0", "message 1", "place 0", "place 1"]
    assert {record.name for record in caplog.records} == {__name__, "elsewhere"}


def test_log_every_n_seconds(caplog):
    with caplog.at_level(logging.INFO):
        for i in range(3):
            log_every_n_seconds(logging.INFO, f"rare {i}", n=1000)
            log_every_n_seconds(logging.INFO, f"often {i}", n=0)
    assert caplog.messages == ["rare 0", "often 0", "often 1", "often 2"]


def test_table():
    lines = create_small_table({"NDS": 0.51234, "mAP": 0.4}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [["NDS", "mAP"], [":-----:", ":-----:"], ["0.512", "0.400"]]
