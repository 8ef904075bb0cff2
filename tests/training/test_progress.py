import io
import re

from flambeau.training.progress import ConsoleProgress, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with ConsoleProgress(stream, every=0.0)("training", 4) as bar:
        for step in range(4):
            bar.advance(loss=0.5 / (step + 1))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training 1/4 (25%)  loss 0.5"
    assert re.fullmatch(r"training 2/4 \(50%\)  \S+/s, 0:00 left  loss 0.25", lines[1])
    assert re.fullmatch(r"training 4/4 \(100%\)  \S+/s  loss 0.125", lines[-1])


def test_lines_are_rare_and_the_end_is_always_told():
    stream = io.StringIO()
    with ConsoleProgress(stream, every=1000.0)("training", 500) as bar:
        for _ in range(500):
            bar.advance()
    assert len(stream.getvalue().splitlines()) == 1 and "500/500 (100%)" in stream.getvalue()


def test_a_bar_on_a_terminal_and_bars_within_bars():
    stream = Terminal()
    progress = ConsoleProgress(stream)
    with progress("trials", 2) as outer:
        for _ in range(2):
            with progress("training", 50) as inner:
                inner.advance(50, loss=0.125)
            outer.advance()
    text = stream.getvalue()
    assert "trials" in text and "50/50" in text and "2/2" in text and "loss 0.125" in text


def test_an_error_inside_passes_and_closes_the_bar():
    stream = Terminal()
    progress = ConsoleProgress(stream)
    try:
        with progress("training", 5) as bar:
            bar.advance()
            raise KeyError("inside")
    except KeyError:
        pass
    with progress("again", 1) as bar:
        bar.advance()
    assert "again" in stream.getvalue()


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3600, 90061)] == ["0:00", "1:00", "1:01", "1:00:00", "25:01:01"]
