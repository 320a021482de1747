"""The command line that the trial drives: what it must notice."""

from command import CommandLine, Ended, Tally


def test_a_mistake_is_one_line_and_help_is_none(miudiff: CommandLine, tally: Tally):
    ended = miudiff("translate", "no such file.png", "out.png")
    tally.add("a missing file", ended.wrong())
    assert ended.code == 2
    assert "no such file.png" in ended.err
    tally.check()


def test_a_traceback_a_hang_and_an_unknown_code_are_wrong():
    assert Ended(None, "", "Traceback (most recent call last)", 0).wrong()
    assert Ended(None, "", "", 0, hung=True).wrong()
    assert Ended(1, "", "", 0).wrong()
    assert Ended(0, "", "", 9000).wrong()
    assert not Ended(2, "", "miudiff: x.png: no such file", 3).wrong()
